//! What a virtio device is, seen from any transport.

use std::fmt;
use std::io;
use std::sync::{Arc, Weak};

use virtio::{F, Id};
use virtqueue::{InFlightRecord, QueueConfig, QueueIndex, QueueState};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

/// A queue on loan to a device: everything that a data plane needs to run it.
///
/// It moves into the device at DRIVER_OK (or at its `queue_enable` after a ring reset) and comes
/// back at reset, so the registers it was made from are frozen meanwhile.
#[derive(Debug)]
pub struct ActiveQueue {
    /// Which queue.
    pub index: QueueIndex,
    /// Size and ring addresses.
    pub config: QueueConfig,
    /// Where it starts, and, when it is handed back, where it stopped.
    pub state: QueueState,
    /// Signalled when the driver has made buffers available. Level: the device reads it empty.
    pub kick: Arc<EventFd>,
    /// Called when the device has used buffers that the driver wants to hear of.
    pub call: Arc<dyn GuestNotifier>,
    /// Where the device's queue keeps what it has in flight, and from where it takes what was in flight before
    /// ([`VirtQueue::with_record`](virtqueue::VirtQueue::with_record)); `None` but where a transport's protocol has
    /// such a record.
    pub in_flight: Option<Arc<dyn InFlightRecord>>,
}

/// Tells the guest of used buffers in one queue.
pub trait GuestNotifier: Send + Sync + fmt::Debug {
    /// Sends a used buffer notification (virtio 1.4, 2.3): the queue's MSI-X vector, or the ISR bit
    /// and the pin. Takes no lock of the transport.
    #[doc(alias = "virtio_notify")]
    fn notify(&self);

    /// A descriptor that does the same when it is written to, for a data plane outside of the
    /// device; `None` where only [`notify`](Self::notify) can (INTx), and where nothing is to be sent (a
    /// queue without a vector).
    ///
    /// It is the one of this moment: a driver may map the queue to another vector or switch MSI-X on and
    /// off at any time, and then [`call_changed`](VirtioDevice::call_changed) tells the device to ask
    /// again. Until then a signal to the old one makes the old interrupt. Masking does not change the
    /// descriptor: what is signalled meanwhile stays pending in it.
    fn event_fd(&self) -> Option<&EventFd>;
}

/// The transport, as the device that is plugged into it sees it. Takes no lock of the transport, so
/// it may be called from the data path.
pub trait Transport: Send + Sync + fmt::Debug {
    /// The device's configuration space has changed (virtio 1.4, 2.5): generation and interrupt.
    #[doc(alias = "virtio_notify_config")]
    fn config_changed(&self);

    /// The device cannot go on: DEVICE_NEEDS_RESET, and a configuration change notification once the
    /// driver is live (virtio 1.4, 2.1.2). `reason` goes to the log, rate-limited.
    #[doc(alias = "virtio_error")]
    fn needs_reset(&self, reason: &str);
}

/// What a device gets at DRIVER_OK.
#[derive(Debug)]
pub struct Activation<M> {
    /// The features that were negotiated.
    pub features: F,
    /// Guest memory.
    pub memory: M,
    /// The queues that the driver has enabled, by rising index.
    pub queues: Vec<ActiveQueue>,
}

/// Why a device refuses the features that the driver has chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("features {features:#x} refused: {reason}")]
pub struct FeaturesRefused {
    /// What the driver chose.
    pub features: u128,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Why a device did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActivateError {
    /// A queue's rings cannot be used.
    #[error("queue {index}: {source}")]
    Queue {
        /// Which queue.
        index: QueueIndex,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A queue that the device cannot do without was not enabled.
    #[error("queue {0} is not enabled")]
    QueueMissing(QueueIndex),
    /// The host refused something.
    #[error("{what}: {source}")]
    Host {
        /// What was asked.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

/// A start that failed: the queues go back to the transport, and why.
#[derive(Debug)]
pub struct NotActivated {
    /// All queues of the activation, untouched.
    pub queues: Vec<ActiveQueue>,
    /// Why.
    pub error: ActivateError,
}

/// A virtio device: what its transport asks of it, in the order in which it asks.
///
/// The transport calls with its one lock held; the device calls back only through [`Transport`] and
/// [`GuestNotifier`], which do not take that lock. Guest memory is `M`; a device stores it for as long
/// as it is active.
///
/// A device may in turn hold its own lock while it calls what is behind it (a network backend, say),
/// and [`negotiate`](Self::negotiate), [`reset`](Self::reset) and the like then hold both over that
/// call. So whatever is behind a device must answer without calling the transport, and without
/// waiting for a thread that may be in one of the transport's registers: a vCPU that reads one waits
/// for as long as the backend takes.
#[doc(alias = "VirtioDeviceClass")]
pub trait VirtioDevice<M: GuestAddressSpace>: Send + Sync + fmt::Debug {
    /// The device type (virtio 1.4, 5).
    fn device_type(&self) -> Id;

    /// The largest size of each queue; the length is the number of queues. Fixed from here on.
    fn queue_max_sizes(&self) -> Vec<u16>;

    /// Interrupts that it is best given, where the user has not said how many: one for each queue and one for
    /// changes of its configuration, unless it knows better. Fixed from here on.
    fn default_vectors(&self) -> usize {
        self.queue_max_sizes().len().saturating_add(1)
    }

    /// All features that the device offers, those of its rings (bits 24 to 40) included; the transport
    /// adds and takes away its own. Asked once, when the device is plugged.
    #[doc(alias = "get_features")]
    fn offered_features(&self) -> F;

    /// What it offers beside these to drivers from before virtio 1.0, where there is such an interface. Asked when the
    /// device is plugged.
    fn legacy_features(&self) -> F {
        F::empty()
    }

    /// The device was plugged: `transport` is where it reports to.
    fn plugged(&self, transport: Weak<dyn Transport>);

    /// The device was unplugged, after a [`reset`](Self::reset).
    fn unplugged(&self);

    /// Bytes of the device's configuration space with all offered features.
    fn config_len(&self) -> usize;

    /// Reads configuration space, `data` zero-filled before; `offset + data.len()` is at most
    /// [`config_len`](Self::config_len). Any width, any alignment, any time.
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// Writes configuration space, under the same promises. Ignored by devices with no writable field.
    fn write_config(&self, offset: usize, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver wants to set FEATURES_OK with these features, which are all offered (virtio 1.4,
    /// 3.1.1 step 5). They are final once accepted, until reset.
    ///
    /// # Errors
    /// When they do not make sense together; the transport then leaves FEATURES_OK clear.
    #[doc(alias = "set_features")]
    fn negotiate(&self, features: F) -> Result<(), FeaturesRefused>;

    /// The driver set DRIVER_OK: run. Each queue was enabled and is the device's until
    /// [`reset`](Self::reset). The kick of each queue is signalled once by the transport afterwards,
    /// for what was queued before.
    ///
    /// # Errors
    /// Gives the queues back, and the transport sets DEVICE_NEEDS_RESET.
    fn activate(&self, activation: Activation<M>) -> Result<(), NotActivated>;

    /// One more queue was enabled while the device runs (after a ring reset; virtio 1.4, 2.6.1.2). Its
    /// kick is signalled once by the transport afterwards, for what was queued before.
    ///
    /// # Errors
    /// Gives the queue back, and the transport sets DEVICE_NEEDS_RESET.
    fn start_queue(&self, queue: ActiveQueue) -> Result<(), NotActivated>;

    /// The driver resets one queue (virtio 1.4, 2.6.1): stop it, wait for what is in flight, hand it
    /// back. `None` if the device has not got it.
    fn stop_queue(&self, index: QueueIndex) -> Option<ActiveQueue>;

    /// [`GuestNotifier::event_fd`] of a queue that the device has names another descriptor, or none, from
    /// now on. A device that has handed the descriptor on hands on the other; one that only calls
    /// [`notify`](GuestNotifier::notify) has nothing to do. May be called with no change as well.
    fn call_changed(&self, queue: QueueIndex) {
        let _ = queue;
    }

    /// A front end that keeps the device's control queue to itself (vhost-user) takes a queue into use, or
    /// takes it out of use: an enabled queue's frames pass, those of another are dropped or wait. Called at
    /// any time after [`negotiate`](Self::negotiate), for queues that the device has got and for those
    /// that it has not, and twice. Never called by a transport that shows the control queue to the driver.
    fn set_queue_enabled(&self, index: QueueIndex, enabled: bool) {
        let _ = (index, enabled);
    }

    /// Back to the state after creation: stop all queues, wait for the last completion of what is in
    /// flight, hand the queues back, forget features and driver-set state. May be called at any time
    /// and twice.
    fn reset(&self) -> Vec<ActiveQueue>;

    /// Stop all I/O and wait for what is in flight; queues stay with the device. May be called twice,
    /// and while no driver is live: a paused device may be activated and reset, and stays paused.
    fn pause(&self);

    /// Go on after [`pause`](Self::pause).
    fn resume(&self);

    /// Where a queue stands that a paused device has: what it takes to go on with it elsewhere. `None` if the device
    /// has not got it, or cannot be saved.
    fn queue_state(&self, index: QueueIndex) -> Option<QueueState> {
        let _ = index;
        None
    }

    /// All that the driver has told the device beside what its transport knows (features, queues), as bytes of the
    /// device's own. Called while it is paused; it may go on afterwards. `None` for a device that cannot be saved.
    fn save(&self) -> Option<Vec<u8>> {
        None
    }

    /// Takes over what [`save`](Self::save) made of a device that was created as this one. Called while it is paused,
    /// after it was given its features and its queues, where the saved device had some; it goes on from there at
    /// [`resume`](Self::resume), and the transport kicks each queue once before.
    ///
    /// # Errors
    /// When the bytes are not this device's, or it cannot do what they ask for. The transport resets it then.
    fn restore(&self, state: &[u8]) -> Result<(), vmstate::Error> {
        let _ = state;
        let reason = "the device cannot be restored";
        Err(vmstate::Error::refused("device", "state", reason))
    }
}

/// Owned by a bus or a transport.
pub type DeviceRef<M> = Arc<dyn VirtioDevice<M>>;
