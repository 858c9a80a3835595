//! QEMU with `-netdev vhost-user`: its virtio-net-pci in an emulated machine, driven by stock Linux.
//!
//! The guest and what runs in it are the suite's of `cargo xtask guest`; so is the host that the guest talks to, a chroot
//! with a network namespace of its own. Back end and QEMU are this machine's programs, started from there.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail, ensure};

use super::back_end;
use super::{Case, run_cases};
use crate::guest::assets::Assets;
use crate::guest::image::{self, Run};
use crate::guest::runner::{remove_leftovers, word};
use crate::guest::suite::verdict;
use crate::guest::watch::{Limits, Outcome};
use crate::guest::{cases, host, indented, vmm};

/// One case, of the suite's or of those below, on a device of QEMU's.
struct Variant {
    name: &'static str,
    case: &'static str,
    /// Properties of `virtio-net-pci`.
    device: &'static str,
    pairs: u16,
}

const VARIANTS: &[Variant] = &[
    Variant {
        name: "ping",
        case: "ping",
        device: "",
        pairs: 1,
    },
    Variant {
        name: "offloads",
        case: OFFLOADS.name,
        device: "",
        pairs: 1,
    },
    Variant {
        name: "offloads=off",
        case: NO_OFFLOADS.name,
        device: ",csum=off,guest_csum=off,host_tso4=off,host_tso6=off,host_ecn=off,\
                 guest_tso4=off,guest_tso6=off,guest_ecn=off,host_ufo=off,guest_ufo=off",
        pairs: 1,
    },
    Variant {
        name: "mrg_rxbuf=off",
        case: "no-mrg-rxbuf",
        device: ",mrg_rxbuf=off",
        pairs: 1,
    },
    Variant {
        name: "packed=on",
        case: "packed",
        device: ",packed=on",
        pairs: 1,
    },
    Variant {
        name: "queues=2",
        case: PAIRS.name,
        device: ",mq=on",
        pairs: 2,
    },
    Variant {
        name: "packed-queues=2",
        case: PAIRS.name,
        device: ",mq=on,packed=on",
        pairs: 2,
    },
    Variant {
        name: "file-to-guest",
        case: "file-to-guest",
        device: "",
        pairs: 1,
    },
    Variant {
        name: "file-from-guest",
        case: "file-from-guest",
        device: "",
        pairs: 1,
    },
];

/// The suite's own has the driver switch received offloads too, of which QEMU tells no vhost-user back end.
const OFFLOADS: cases::Case = cases::Case {
    name: "vhost-user-offloads",
    about: "frames are larger than the MTU both ways; ethtool -K switches those that are sent, under streams",
    guest: r#"
iperf3 -c 10.0.2.2 -t 300 --bidir -f k >/tmp/both 2>&1 &
both=$!
sleep 1
set_to() {
    ethtool -K eth0 $1 $2 >/dev/null || fail "ethtool -K eth0 $1 $2"
    pass_both_ways
}
# Linux has each only with some of those that are switched off after it, and on before it.
for round in 1 2; do
    for name in tcp-segmentation-offload tx-checksumming scatter-gather; do
        set_to $name off
    done
    for name in scatter-gather tx-checksumming tcp-segmentation-offload; do
        set_to $name on
    done
done
kill $both
wait $both
ethtool -K eth0 generic-segmentation-offload on
before=$(frames rx)
stream -t 2 -R
at_least "received frame with TSO" "$(frame_size rx "$before")" 2000
before=$(frames tx)
stream -t 2
at_least "sent frame with TSO" "$(frame_size tx "$before")" 2000
ethtool -K eth0 tcp-segmentation-offload off generic-segmentation-offload off >/dev/null
before=$(frames tx)
stream -t 2
at_most "sent frame without TSO" "$(frame_size tx "$before")" 1514
ping -c 20 -i 0.02 10.0.2.2
"#,
    check: cases::last_pings,
    ..cases::Case::PLAIN
};

const NO_OFFLOADS: cases::Case = cases::Case {
    name: "vhost-user-no-offloads",
    about: "without offloads no frame is larger than the MTU, either way",
    guest: r#"
expect "CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4" "$(feature 0)$(feature 1)$(feature 7)$(feature 11)" 0000
for direction in tx rx; do
    before=$(frames $direction)
    [ $direction = tx ] && stream -t 2 || stream -t 2 -R
    at_least "frame, $direction" "$(frame_size $direction "$before")" 500
    at_most "frame, $direction" "$(frame_size $direction "$before")" 1514
done
ping -c 20 -i 0.02 10.0.2.2
"#,
    check: cases::last_pings,
    ..cases::Case::PLAIN
};

/// As the suite's `mq`, but that queues are told apart by what the driver counts, as they share an interrupt.
const PAIRS: cases::Case = cases::Case {
    name: "vhost-user-mq",
    about: "two pairs of queues carry traffic, and ethtool -L changes their number under it",
    guest: r#"
combined() { ethtool -l eth0 | awk '/Combined:/ { print $2 }' | tr '\n' ' '; }
expect "pairs at most and now" "$(combined)" "2 2 "
counts() {
    for queue in rx_queue_0 rx_queue_1 tx_queue_0 tx_queue_1; do
        ethtool -S eth0 | awk -v key="${queue}_packets:" '$1 == key { print $2 }'
    done
}
# increases: by how much each has grown since `counts >/tmp/before`.
increases() { counts | paste -d ' ' - /tmp/before | awk '{ print $1 - $2 }'; }
both_busy() {
    counts >/tmp/before
    stream -t 2 -P 8
    stream -t 2 -P 8 -R
    set -- $(increases)
    at_least "frames of receive queue 0" $1 50
    at_least "frames of receive queue 1" $2 50
    at_least "frames of send queue 0" $3 50
    at_least "frames of send queue 1" $4 50
}
both_busy
iperf3 -c 10.0.2.2 -t 300 -P 4 --bidir >/tmp/both 2>&1 &
both=$!
sleep 1
for round in 1 2 3; do
    for number in 1 2; do
        ethtool -L eth0 combined $number || fail "ethtool -L eth0 combined $number"
        expect "pairs" "$(combined)" "2 $number "
        sleep 0.2
        pass_both_ways
    done
done
kill $both
wait $both
sleep 1
ethtool -L eth0 combined 1
stream -t 2 -P 8
stream -t 2 -P 8 -R
ping -c 20 -i 0.02 10.0.2.2
ethtool -L eth0 combined 2
both_busy
ping -c 20 -i 0.02 10.0.2.2
"#,
    check: cases::last_pings,
    ..cases::Case::PLAIN
};

/// Without `vectors=0` QEMU 7.2 ends with SIGSEGV when the driver starts the device, whatever the back end: a guest without
/// KVM whose driver has turned MSI-X on has its queues' interrupts bound as KVM would bind them
/// (`vhost_net_start`, `msix_set_vector_notifiers`, then `kvm_irqchip_add_irqfd_notifier_gsi` with a vector's
/// route that was never made). With the pin it goes another way.
const NO_MSIX: &str = "vectors=0";

const QEMU: &str = "qemu-system-x86_64";

/// Runs the variants that are named, or all.
pub(crate) fn main(named: &[String]) -> Result<usize> {
    back_end::need_root()?;
    ensure!(
        (Command::new(QEMU).arg("-version").stdout(Stdio::null()))
            .status()
            .is_ok(),
        "{QEMU} is missing: apt-get install --no-install-recommends qemu-system-x86"
    );
    let program = back_end::build()?;
    let (_, target) = vmm::workspace()?;
    let cache = target.join("guest");
    let assets = Assets::ready(&cache)?;
    let runs = cache.join("runs");
    remove_leftovers(&runs);
    let mut list: Vec<Case<'_>> = Vec::new();
    for variant in VARIANTS {
        let (program, assets, runs) = (&program, &assets, &runs);
        list.push((
            variant.name,
            Box::new(|| boot(program, assets, runs, variant)),
        ));
    }
    run_cases(&list, named)
}

/// Boots one guest, runs the case in it, and judges what came of it.
fn boot(program: &Path, assets: &Assets, runs: &Path, variant: &Variant) -> Result<String> {
    let case = cases::all()
        .chain([&OFFLOADS, &NO_OFFLOADS, &PAIRS])
        .find(|case| case.name == variant.case)
        .with_context(|| format!("the suite has no case {}", variant.case))?;
    let word = word();
    let directory = runs.join(&word);
    let run = Run {
        word: &word,
        // Back end and QEMU are outside.
        vmm: b"",
        arguments: &[],
        guest: case.guest,
        before: case.before,
        after: case.after,
    };
    let mut tree = image::host(assets, &run)?;
    tree.directory(host::OUTER);
    tree.file(
        "host/start-vmm",
        start(program, &host::root(&directory), variant, case.smp),
    );
    let stop = Arc::new(AtomicBool::new(false));
    let outcome = host::boot_in_chroot(
        &tree,
        &word,
        Limits::default(),
        &directory,
        &stop,
        &mut io::sink(),
    );
    let keep = std::env::var_os("VHOST_USER_KEEP").is_some();
    if !keep {
        // Nothing is lost if a file stays.
        let _ = fs::remove_dir_all(&directory);
    }
    let outcome = outcome?;
    let result = verdict(case, &outcome).and_then(|()| not_sent_away(&outcome));
    if let Err(error) = result {
        bail!(
            "{error:#}\n{}{}",
            indented("the guest's commands printed", &outcome.output),
            indented("console of guest, QEMU and back end", &outcome.console)
        );
    }
    Ok(format!("the case {} passed", case.name))
}

/// The commands that start the back end, and QEMU on it, in the host's root.
fn start(program: &Path, root: &Path, variant: &Variant, smp: u8) -> String {
    let outer = |line: String| format!("chroot /{} {line}", host::OUTER);
    let root = root.display();
    let queues = match variant.pairs {
        1 => String::new(),
        pairs => format!(",queues={pairs}"),
    };
    let back_end = outer(format!(
        "{} --socket {root}/host/socket -netdev tap,id=n0,ifname=tap0,ip={}/24{queues}",
        vmm::quote(&program.display().to_string()),
        back_end::ADDRESS,
    ));
    let memory = 256;
    let qemu = outer(format!(
        "{QEMU} -nodefaults -no-user-config -display none -no-reboot \
         -accel tcg -cpu max -smp {smp} -m {memory} -machine q35,memory-backend=mem \
         -object memory-backend-memfd,id=mem,size={memory}M,share=on \
         -kernel {root}/host/kernel -initrd {root}/host/initrd \
         -append 'console=ttyS0 loglevel=4 panic=-1' -serial stdio \
         -chardev socket,id=c0,path={root}/host/socket \
         -netdev vhost-user,id=net0,chardev=c0{queues} \
         -device virtio-net-pci,netdev=net0,mac=52:54:00:12:34:57,{NO_MSIX}{}",
        variant.device
    ));
    format!(
        "{back_end} >/host/back-end 2>&1 &\n\
         back_end=$!\n\
         until grep -q 'waiting for' /host/back-end; do\n\
             kill -0 $back_end || {{ cat /host/back-end; exit 1; }}\n\
             sleep 0.1\n\
         done\n\
         {qemu}\n\
         status=$?\n\
         kill $back_end\n\
         wait $back_end || status=$?\n\
         sed 's/^/{MARK}/' /host/back-end\n\
         exit $status\n"
    )
}

/// Before each line of the back end's.
const MARK: &str = "back end: ";

/// The back end had nothing to complain of.
fn not_sent_away(outcome: &Outcome) -> Result<()> {
    let said: Vec<_> = (outcome.console.lines())
        .filter(|line| line.starts_with(MARK))
        .collect();
    ensure!(!said.is_empty(), "the back end said nothing");
    if let Some(line) = said.iter().find(|line| line.contains("sent away")) {
        bail!("{line}");
    }
    Ok(())
}
