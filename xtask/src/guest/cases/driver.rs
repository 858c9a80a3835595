//! What the guest's driver finds: identity, address, carrier, interrupts.

use anyhow::{Result, ensure};

use super::{Case, booted_once, value};
use crate::guest::watch::Outcome;

pub(super) const CASES: &[Case] = &[Case {
    name: "bind",
    about: "virtio_net binds; MAC and carrier are as asked",
    device: "mac=52:54:00:12:34:57",
    guest: r#"
cd /sys/class/net/eth0
expect driver "$(basename "$(readlink device/driver)")" virtio_net
expect MAC "$(cat address)" 52:54:00:12:34:57
wait_for 10 carrier grep -q 1 carrier
expect operstate "$(cat operstate)" up
function=$(readlink -f device/..)
expect vendor "$(cat $function/vendor)" 0x1af4
echo "device: $(cat $function/device)"
echo "features: $(cat device/features)"
# A vendor's capability is one of the modern interface's; disable-modern=on has none.
if has_capability 9; then echo "modern: 1"; else echo "modern: 0"; fi
echo "interrupts: $(grep -c 'virtio[0-9]*-' /proc/interrupts)"
ethtool -i eth0
# The host's end knows the guest under the address it was given.
ping -c 1 10.0.2.2
host 'ip neigh show 10.0.2.15'
"#,
    check: bound,
    ..Case::PLAIN
}];

fn bound(outcome: &Outcome) -> Result<()> {
    booted_once(outcome)?;
    let output = &outcome.output;
    let device = value(output, "device:")?;
    // Modern or transitional; the latter is the default of `disable-legacy=auto`.
    ensure!(
        matches!(device, "0x1041" | "0x1000"),
        "the PCI device is {device}"
    );
    // Bit 32 is VIRTIO_F_VERSION_1; the string starts with bit 0.
    let features = value(output, "features:")?;
    let version_1 = features.as_bytes().get(32) == Some(&b'1');
    let modern = value(output, "modern:")? == "1";
    ensure!(
        version_1 == modern,
        "the device has the modern interface: {modern}; negotiated VERSION_1: {version_1}: {features}"
    );
    let interrupts = value(output, "interrupts:")?;
    ensure!(
        interrupts.parse().is_ok_and(|n: u32| n > 0),
        "the device has no interrupt"
    );
    ensure!(
        value(output, "driver:")? == "virtio_net",
        "ethtool names another driver"
    );
    let known = value(output, "10.0.2.15 ")?;
    ensure!(
        known.contains("52:54:00:12:34:57"),
        "the host knows the guest as: {known}"
    );
    Ok(())
}
