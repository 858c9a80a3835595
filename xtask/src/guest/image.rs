//! The two root file systems: the guest's, and that of the host which runs the VMM.

use std::path::Path;

use anyhow::{Context, Result};

use super::assets::{Assets, read};
use super::bpf;
use super::cpio::Tree;
use super::modules;
use super::vmm;

/// Modules in the guest. The init loads `virtio_pci` and `virtio_net`; the rest is for
/// `modprobe` in a case.
const GUEST_MODULES: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
    "8021q",
    "bonding",
    "bridge",
    "veth",
    "macvlan",
    "dummy",
    "tun",
    "pktgen",
];

/// Modules in the emulated host.
const HOST_MODULES: &[&str] = &[
    "irqbypass",
    "kvm",
    "kvm-amd",
    "tun",
    "bridge",
    "veth",
    "macvtap",
    "8021q",
    "vhost_net",
];

/// Replaces the guest's kernel image: another image of the same kernel, since the modules stay.
const KERNEL: &str = "GUEST_KERNEL";

/// What one run consists of, as far as it ends up in files.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    /// The word that this run's markers carry.
    pub(crate) word: &'a str,
    /// The VMM's executable, statically linked.
    pub(crate) vmm: &'a [u8],
    /// The VMM's arguments, without those that name kernel and initramfs.
    pub(crate) arguments: &'a [String],
    /// The commands for the guest's shell.
    pub(crate) guest: &'a str,
    /// Commands for the host's shell before the VMM starts; background processes stay.
    pub(crate) before: &'a str,
    /// Commands for the host's shell after the VMM has ended.
    pub(crate) after: &'a str,
}

/// The guest's initramfs.
pub(crate) fn guest(assets: &Assets, run: &Run<'_>) -> Result<Tree> {
    let mut tree = Tree::default();
    skeleton(&mut tree);
    assets.install_programs(&mut tree)?;
    modules::install(&mut tree, &assets.modules, &assets.release, GUEST_MODULES)?;
    bpf::install(&mut tree);
    tree.program("init", include_str!("init.sh"));
    tree.file("run/config", format!("export WORD={}\n", run.word));
    tree.file(
        "run/commands",
        format!("{}\n{}\n", include_str!("prelude.sh"), run.guest),
    );
    Ok(tree)
}

/// The root of the host, emulated or a chroot, with the guest's kernel and initramfs in it.
pub(crate) fn host(assets: &Assets, run: &Run<'_>) -> Result<Tree> {
    let mut tree = Tree::default();
    skeleton(&mut tree);
    assets.install_programs(&mut tree)?;
    modules::install(&mut tree, &assets.modules, &assets.release, HOST_MODULES)?;
    tree.program("init", include_str!("host-init.sh"));
    tree.program("host/vmm", run.vmm);
    let kernel = match std::env::var_os(KERNEL) {
        Some(path) => read(Path::new(&path)).context(KERNEL)?,
        None => read(&assets.kernel)?,
    };
    tree.file("host/kernel", kernel);
    tree.file("host/initrd", guest(assets, run)?.to_cpio()?);
    tree.file("host/main", include_str!("host.sh"));
    tree.program("host/exec", include_str!("host-exec.sh"));
    let mut line = String::from(
        "exec /host/vmm -kernel /host/kernel -initrd /host/initrd \
         -monitor tcp:127.0.0.1:4444,server=on,wait=off",
    );
    for argument in run.arguments {
        line.push(' ');
        line.push_str(&vmm::quote(argument));
    }
    tree.file("host/start-vmm", line + "\n");
    tree.file("host/before", run.before);
    tree.file("host/after", run.after);
    Ok(tree)
}

fn skeleton(tree: &mut Tree) {
    for directory in ["dev", "proc", "sys", "tmp", "root", "run", "etc"] {
        tree.directory(directory);
    }
    tree.device("dev/console", 5, 1);
    tree.device("dev/null", 1, 3);
    tree.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
    tree.file("etc/group", "root:x:0:\n");
    tree.file("etc/hosts", "127.0.0.1 localhost\n");
}
