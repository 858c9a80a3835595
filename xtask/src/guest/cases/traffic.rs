//! Frames both ways: pings, streams, files.

use anyhow::{Context, Result, bail, ensure};

use super::{Case, all_pings_answered, booted_once, value};
use crate::guest::watch::Outcome;

/// Pings of each size to and from the host, and a stream, none of them fragmented.
macro_rules! jumbo {
    () => {
        r#"
expect MTU "$(cat /sys/class/net/eth0/mtu)" 9000
! ip link set eth0 mtu 9001 2>&1 || fail "the guest may set a larger MTU than the host's"
host 'ip link set tap0 mtu 9000'
mine=$(fragments) theirs=$(host 'awk "/^Ip:/ { n = \$20 } END { print n }" /proc/net/snmp')
# A busybox ping has a receive buffer for a few answers of this size: no more are to come at once after a stall.
for size in 1472 1473 4054 4055 8150 8972; do
    ping -q -c 10 -i 0.2 -s $size 10.0.2.2
    host "ping -q -c 10 -i 0.2 -s $size 10.0.2.15"
done
ethtool -K eth0 tso off gso off
before=$(frames tx)
stream -t 2
at_least "sent frame" "$(frame_size tx "$before")" 5000
host 'ethtool -K tap0 tso off gso off'
before=$(frames rx)
stream -t 2 -R
at_least "received frame" "$(frame_size rx "$before")" 5000
expect "fragments of the guest" "$(fragments)" "$mine"
expect "fragments of the host" "$(host 'awk "/^Ip:/ { n = \$20 } END { print n }" /proc/net/snmp')" "$theirs"
"#
    };
}

/// Room in the receiver's socket for some seconds of datagrams: by default it is for a tenth of one, which is lost when
/// the program has no processor for that long. A machine whose sysctl is not to be had from here is fast enough.
macro_rules! room_for_datagrams {
    ($shell:literal) => {
        concat!(
            $shell,
            " 'echo 8388608 >/proc/sys/net/core/rmem_default' 2>/dev/null\n"
        )
    };
}

pub(super) const CASES: &[Case] = &[
    Case {
        name: "ping",
        about: "100 pings, none lost",
        guest: "ping -c 100 -i 0.02 10.0.2.2",
        check: |outcome| {
            booted_once(outcome)?;
            all_pings_answered(outcome, 1, 100)
        },
        ..Case::PLAIN
    },
    Case {
        name: "iperf3-tx",
        about: "iperf3 TCP from guest to host",
        guest: "iperf3 -c 10.0.2.2 -t 5 -f k",
        check: streamed,
        ..Case::PLAIN
    },
    Case {
        name: "iperf3-rx",
        about: "iperf3 TCP from host to guest",
        guest: "iperf3 -c 10.0.2.2 -t 5 -f k -R",
        check: streamed,
        ..Case::PLAIN
    },
    Case {
        name: "udp-tx",
        about: "iperf3 UDP from guest to host",
        guest: concat!(
            room_for_datagrams!("host"),
            "iperf3 -c 10.0.2.2 -u -b 8M -l 1400 -t 4 -f k"
        ),
        check: datagrams,
        ..Case::PLAIN
    },
    Case {
        name: "udp-rx",
        about: "iperf3 UDP from host to guest",
        guest: concat!(
            room_for_datagrams!("sh -c"),
            "iperf3 -c 10.0.2.2 -u -b 8M -l 1400 -t 4 -f k -R"
        ),
        check: datagrams,
        ..Case::PLAIN
    },
    Case {
        name: "jumbo",
        about: "frames of 9000 bytes with host_mtu=9000",
        device: "host_mtu=9000",
        guest: jumbo!(),
        check: jumbo_pings,
        ..Case::PLAIN
    },
    Case {
        name: "jumbo-chains",
        about: "frames of 9000 bytes in chains, without mrg_rxbuf and TSO",
        device: "host_mtu=9000,mrg_rxbuf=off,guest_tso4=off,guest_tso6=off,guest_ecn=off",
        guest: jumbo!(),
        check: jumbo_pings,
        ..Case::PLAIN
    },
    Case {
        name: "two-nics",
        about: "two devices on two taps keep their traffic apart",
        vmm_args: Some(
            "-netdev tap,id=net0,ifname=tap0,ip=10.0.2.2/24 -device virtio-net-pci,netdev=net0 \
             -netdev tap,id=net1,ifname=tap1,ip=10.0.3.2/24 -device virtio-net-pci,netdev=net1",
        ),
        guest: r#"
cd /sys/class/net
expect "first MAC" "$(cat eth0/address)" 52:54:00:12:34:56
expect "second MAC" "$(cat eth1/address)" 52:54:00:12:34:57
sysctl -q net.ipv4.conf.all.arp_ignore=1
ip addr add 10.0.3.15/24 dev eth1
ip link set eth1 up
wait_for 10 "carrier of eth1" grep -q 1 eth1/carrier
one=$(counter rx_packets) other=$(cat eth1/statistics/rx_packets)
ping -c 50 -i 0.02 10.0.3.2
at_least "frames on eth1" $(($(cat eth1/statistics/rx_packets) - other)) 50
at_most "frames on eth0" $(($(counter rx_packets) - one)) 10
host 'ip neigh show dev tap1'
# Both at once, one of them at full speed.
iperf3 -c 10.0.2.2 -t 5 --bidir >/tmp/both 2>&1 &
ping -c 50 -i 0.05 10.0.3.2
wait $! || { cat /tmp/both; fail "the streams on eth0 broke"; }
# One leaves, the other stays.
basename "$(readlink -f eth0/device/..)" >/tmp/function
cat /tmp/function >/sys/bus/pci/drivers/virtio-pci/unbind
[ ! -e eth0 ] || fail "eth0 is still there"
ping -c 50 -i 0.02 10.0.3.2
cat /tmp/function >/sys/bus/pci/drivers/virtio-pci/bind
bring_up
ping -c 50 -i 0.02 10.0.2.2
"#,
        check: |outcome| {
            booted_once(outcome)?;
            let known = value(&outcome.output, "10.0.3.15 ")?;
            ensure!(
                known.contains("52:54:00:12:34:57"),
                "the host knows eth1 as: {known}"
            );
            all_pings_answered(outcome, 4, 50)
        },
        ..Case::PLAIN
    },
    Case {
        name: "capture",
        about: "a filter-dump at the tap has each frame, under a stream and while it comes and goes",
        vmm_args: Some(
            "-netdev tap,id=net0,ip=10.0.2.2/24 -device virtio-net-pci,netdev=net0 \
             -object filter-dump,id=f0,netdev=net0,file=/tmp/f0.pcap,maxlen=128",
        ),
        guest: r#"
ping -c 20 -i 0.02 10.0.2.2
stream -t 2
stream -t 2 -R
host monitor object_add filter-dump,id=f1,netdev=net0,file=/tmp/f1.pcap
ping -c 20 -i 0.02 -s 1000 10.0.2.2
host monitor info network
host monitor object_del f1
host monitor object_del f0
stream -t 2 -R
ping -c 20 -i 0.02 10.0.2.2
"#,
        after: r#"
frames() { tcpdump -Z root -n -r /tmp/$1.pcap "$2" 2>/dev/null | grep -c .; }
for file in f0 f1; do
    echo "$file requests: $(frames $file 'icmp[icmptype] == 8')"
    echo "$file replies: $(frames $file 'icmp[icmptype] == 0')"
    echo "$file stream: $(frames $file 'tcp port 5201')"
done
"#,
        check: captured,
        ..Case::PLAIN
    },
    Case {
        name: "file-to-guest",
        about: "a file of 64 MiB reaches the guest intact",
        guest: r#"
host 'head -c 67108864 /dev/urandom >/tmp/file'
host 'nc -l -p 9001 -e cat /tmp/file >/dev/null 2>&1 &'
wait_for 10 "the host listens" host_listens 9001
nc 10.0.2.2 9001 <&9 >/tmp/file
echo "size: $(stat -c %s /tmp/file)"
echo "guest: $(sha256sum </tmp/file)"
echo "host: $(host 'sha256sum </tmp/file')"
"#,
        check: intact,
        ..Case::PLAIN
    },
    Case {
        name: "file-from-guest",
        about: "a file of 64 MiB reaches the host intact",
        guest: r#"
head -c 67108864 /dev/urandom >/tmp/file
host "nc -l -p 9001 -e sh -c 'cat >/tmp/file' >/dev/null 2>&1 &"
wait_for 10 "the host listens" host_listens 9001
nc 10.0.2.2 9001 </tmp/file
echo "size: $(host 'stat -c %s /tmp/file')"
echo "guest: $(sha256sum </tmp/file)"
echo "host: $(host 'sha256sum </tmp/file')"
"#,
        check: intact,
        ..Case::PLAIN
    },
];

/// The captures have all pings that were sent while they stood, and the streams.
fn captured(outcome: &Outcome) -> Result<()> {
    booted_once(outcome)?;
    let filters = outcome
        .output
        .lines()
        .filter(|l| l.contains("type=filter-dump"));
    ensure!(
        filters.count() == 2,
        "info network does not list two filters"
    );
    for (key, count) in [
        ("f0 requests:", "40"),
        ("f0 replies:", "40"),
        ("f1 requests:", "20"),
        ("f1 replies:", "20"),
    ] {
        let seen = value(&outcome.host, key)?;
        ensure!(seen == count, "{key} {seen}, not {count}");
    }
    let streamed: u32 = value(&outcome.host, "f0 stream:")?.parse()?;
    ensure!(streamed > 100, "only {streamed} frames of the streams");
    all_pings_answered(outcome, 3, 20)
}

/// iperf3 moved at least a megabit a second by the receiver's count.
fn streamed(outcome: &Outcome) -> Result<()> {
    booted_once(outcome)?;
    let line = outcome
        .output
        .lines()
        .find(|line| line.trim_end().ends_with("receiver"))
        .context("iperf3 printed no receiver's total")?;
    let words: Vec<_> = line.split_whitespace().collect();
    let rate = words.windows(2).find_map(|pair| match pair {
        [number, "Kbits/sec"] => number.parse::<f64>().ok(),
        _ => None,
    });
    let Some(rate) = rate else {
        bail!("cannot read '{line}'")
    };
    ensure!(rate > 1000.0, "only {rate} kbit/s arrived");
    Ok(())
}

/// Both ends have the same file, of the size that was sent.
fn intact(outcome: &Outcome) -> Result<()> {
    booted_once(outcome)?;
    let output = &outcome.output;
    let size = value(output, "size:")?;
    ensure!(size == "67108864", "the file that arrived has {size} bytes");
    let (guest, host) = (value(output, "guest:")?, value(output, "host:")?);
    ensure!(guest.len() > 64, "sha256sum printed '{guest}'");
    ensure!(guest == host, "the sums differ: guest {guest}, host {host}");
    Ok(())
}

/// Both ends, for each size, had all pings answered.
fn jumbo_pings(outcome: &Outcome) -> Result<()> {
    booted_once(outcome)?;
    all_pings_answered(outcome, 12, 10)
}

/// At most one datagram in twenty was lost of those that were sent at the rate asked for.
fn datagrams(outcome: &Outcome) -> Result<()> {
    booted_once(outcome)?;
    let line = (outcome.output.lines())
        .find(|line| line.trim_end().ends_with("receiver"))
        .context("iperf3 printed no receiver's total")?;
    let counts = line.split_whitespace().find_map(|word| {
        word.split_once('/')
            .filter(|(lost, _)| lost.parse::<u32>().is_ok())
    });
    let Some((Ok(lost), Ok(sent))) =
        counts.map(|(lost, sent)| (lost.parse::<u32>(), sent.parse::<u32>()))
    else {
        bail!("cannot read '{line}'")
    };
    ensure!(sent > 500, "only {sent} datagrams were sent");
    ensure!(lost * 20 <= sent, "{lost} of {sent} datagrams were lost");
    Ok(())
}
