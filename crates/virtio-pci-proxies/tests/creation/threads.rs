//! `iothreads`: queue pairs on threads of their own.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::thread::{self, ThreadId};

use iothread::{AioContext, AioContexts, ContextLease, IoThreads};
use net_client::{Frame, NetClient, Netdev, OpenError, Opener, Port, Received};

use crate::machine::Rig;

/// A backend's queue that knows where it works.
#[derive(Debug)]
struct Queue {
    port: Arc<Port>,
    context: Mutex<Option<Arc<dyn AioContext>>>,
}

impl NetClient for Queue {
    fn receive(&self, _: &Frame<'_>) -> Received {
        Received::Taken
    }

    fn attach(&self, context: &Arc<dyn AioContext>) -> io::Result<()> {
        *self.context.lock().unwrap() = Some(context.clone());
        Ok(())
    }
}

#[derive(Debug)]
struct Queues {
    queues: Vec<Arc<Queue>>,
    ports: Vec<Arc<Port>>,
}

impl Queues {
    fn new(count: usize) -> Arc<Self> {
        let queue = |_| {
            Arc::new_cyclic(|me: &Weak<Queue>| Queue {
                port: Port::new("queue", me.clone()),
                context: Mutex::default(),
            })
        };
        let queues: Vec<_> = (0..count).map(queue).collect();
        let ports = queues.iter().map(|queue| queue.port.clone()).collect();
        Arc::new(Self { queues, ports })
    }

    /// The thread that each works on.
    fn threads(&self) -> Vec<ThreadId> {
        let thread_of = |queue: &Arc<Queue>| {
            let (to, from) = mpsc::channel();
            let context = queue.context.lock().unwrap().clone().unwrap();
            context.schedule(Box::new(move || to.send(thread::current().id()).unwrap()));
            from.recv().unwrap()
        };
        self.queues.iter().map(thread_of).collect()
    }
}

impl Netdev for Queues {
    fn kind(&self) -> &str {
        "queues"
    }

    fn ports(&self) -> &[Arc<Port>] {
        &self.ports
    }

    fn info(&self) -> String {
        String::new()
    }
}

/// Counts the threads that run.
#[derive(Debug, Default)]
struct Counted(Arc<()>);

struct Running<T>(T, #[expect(dead_code, reason = "counted")] Arc<()>);

impl<T> fmt::Debug for Running<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Running")
    }
}

impl AioContexts for Counted {
    fn context(&self, name: &str) -> io::Result<ContextLease> {
        let lease = IoThreads.context(name)?;
        let context = lease.context().clone();
        Ok(ContextLease::new(context, Running(lease, self.0.clone())))
    }
}

/// A machine with a netdev `net0` of so many queues.
fn rig(count: usize) -> (Rig, Arc<Queues>, Arc<()>) {
    let rig = Rig::new();
    let queues = Queues::new(count);
    let netdev = queues.clone();
    let open = move |_: &mut keyval::Options| -> Result<Opener, OpenError> {
        let netdev = netdev.clone();
        Ok(Box::new(move |_| Ok(netdev)))
    };
    rig.netdevs.register("queues", Box::new(open));
    rig.netdev("queues,id=net0");
    let service = Counted::default();
    let running = service.0.clone();
    rig.machine.provide::<dyn AioContexts>(Arc::new(service));
    (rig, queues, running)
}

#[test]
fn pairs_take_turns_in_getting_threads_that_end_with_the_nic() {
    for (pairs, iothreads) in [(1, 1), (2, 1), (2, 2), (4, 2), (3, 2)] {
        let case = format!("{pairs} on {iothreads}");
        let (rig, queues, running) = rig(pairs);
        let before = Arc::strong_count(&running);
        let text = format!("virtio-net-pci,netdev=net0,id=nic,mq=on,iothreads={iothreads}");
        rig.device(&text).unwrap();
        let threads = queues.threads();
        let different: HashSet<_> = threads.iter().collect();
        assert_eq!(different.len(), iothreads, "{case}");
        assert!(!different.contains(&thread::current().id()), "{case}");
        for (i, thread) in threads.iter().enumerate() {
            assert_eq!(*thread, threads[i % iothreads], "{case}: pair {i}");
        }
        assert_eq!(Arc::strong_count(&running), before + iothreads, "{case}");
        rig.machine.device_del("nic").unwrap();
        assert_eq!(Arc::strong_count(&running), before, "{case}");
    }
}

#[test]
fn more_threads_than_pairs_are_refused_and_none_is_left() {
    let (rig, _queues, running) = rig(2);
    let before = Arc::strong_count(&running);
    let error = rig
        .device("virtio-net-pci,netdev=net0,mq=on,iothreads=3")
        .unwrap_err();
    let expected = "Invalid iothreads (= 3), must be at most the number of queue pairs (= 2)";
    assert_eq!(error.to_string(), expected);
    // One that fails later leaves none either.
    rig.device("failing-net-pci,netdev=net0,mq=on,iothreads=2")
        .unwrap_err();
    assert_eq!(Arc::strong_count(&running), before);
    rig.assert_empty("iothreads");
}

#[test]
fn without_the_property_all_pairs_work_on_the_machines_context() {
    let (rig, queues, _running) = rig(2);
    rig.device("virtio-net-pci,netdev=net0,mq=on").unwrap();
    for queue in &queues.queues {
        let context = queue.context.lock().unwrap().clone().unwrap();
        let machines: Arc<dyn AioContext> = rig.context.clone();
        assert!(Arc::ptr_eq(&context, &machines));
    }
}
