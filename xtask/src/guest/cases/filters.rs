//! Which frames the device hands up, as its driver asks for them.

use super::{Case, all_pings_answered, booted_once, pings};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "promisc",
        about: "frames to other stations arrive where the driver asks for them, and only there",
        guest: r#"
stray='ping -q -c 50 -i 0.01 -W 1 10.0.2.77'
host 'ip neigh replace 10.0.2.77 lladdr 52:54:00:ee:ee:ee dev tap0 nud permanent'
to_others() { seen 'ether dst 52:54:00:ee:ee:ee' "$stray"; }
expect "strays at first" "$(to_others)" 0
expect "strays on the wire" "$(host_seen 'ether dst 52:54:00:ee:ee:ee' host "$stray")" 50
ip link set eth0 promisc on
expect "strays in promiscuous mode" "$(to_others)" 50
ip link set eth0 promisc off
expect "strays after it" "$(to_others)" 0
# One more address, in the table.
bridge fdb add 52:54:00:ee:ee:ee dev eth0 self
expect "frames to a second address" "$(to_others)" 50
bridge fdb del 52:54:00:ee:ee:ee dev eth0 self
expect "strays after its removal" "$(to_others)" 0
# More than the table holds: all come, and the stack drops what it has no use for.
for n in $(seq 10 80); do bridge fdb add 52:54:00:dd:00:$n dev eth0 self; done
expect "strays with too many addresses" "$(to_others)" 50
for n in $(seq 10 80); do bridge fdb del 52:54:00:dd:00:$n dev eth0 self; done
expect "strays with few again" "$(to_others)" 0
ping -c 20 -i 0.02 10.0.2.2
"#,
        check: |outcome| {
            booted_once(outcome)?;
            all_pings_answered(outcome, 1, 20)
        },
        ..Case::PLAIN
    },
    Case {
        name: "multicast",
        about: "frames to groups arrive where the driver asks for them, and only there",
        guest: r#"
host 'ip route add 239.0.0.0/8 dev tap0'
group='ether dst 01:00:5e:01:02:03' send='ping -q -c 50 -i 0.01 -W 1 239.1.2.3'
to_group() { seen "$group" "$send"; }
expect "frames to a group nobody joined" "$(to_group)" 0
expect "frames on the wire" "$(host_seen "$group" host "$send")" 50
ip maddress add 01:00:5e:01:02:03 dev eth0
expect "frames to a group that was joined" "$(to_group)" 50
ip maddress del 01:00:5e:01:02:03 dev eth0
expect "frames to a group that was left" "$(to_group)" 0
ip link set eth0 allmulticast on
expect "frames to any group" "$(to_group)" 50
ip link set eth0 allmulticast off
expect "frames after that" "$(to_group)" 0
for n in $(seq 10 80); do ip maddress add 01:00:5e:7f:00:$n dev eth0; done
expect "frames with too many groups" "$(to_group)" 50
for n in $(seq 10 80); do ip maddress del 01:00:5e:7f:00:$n dev eth0; done
expect "frames with few again" "$(to_group)" 0
# A broadcast is no group that can be left.
host 'ip neigh replace 10.0.2.78 lladdr ff:ff:ff:ff:ff:ff dev tap0 nud permanent'
expect "broadcasts" "$(seen 'ether dst ff:ff:ff:ff:ff:ff and icmp' 'ping -q -c 50 -i 0.01 -W 1 10.0.2.78')" 50
ping -c 20 -i 0.02 10.0.2.2
"#,
        check: |outcome| {
            booted_once(outcome)?;
            all_pings_answered(outcome, 1, 20)
        },
        ..Case::PLAIN
    },
    Case {
        name: "vlan",
        about: "a VLAN's frames arrive with their tags while the VLAN is there, and others' do not",
        guest: r#"
mac=$(cat /sys/class/net/eth0/address)
host 'modprobe 8021q'
for id in 5 7; do
    host "ip link add link tap0 name tap0.$id type vlan id $id &&
        ip addr add 10.0.$id.2/24 dev tap0.$id && ip link set tap0.$id up &&
        ip neigh replace 10.0.$id.15 lladdr $mac dev tap0.$id nud permanent" || fail "VLAN $id of the host"
done
tagged() { seen "vlan $1 and icmp[icmptype] == 8" "ping -q -c 50 -i 0.01 -W 1 10.0.$1.15"; }
modprobe 8021q
ip link add link eth0 name eth0.5 type vlan id 5
ip addr add 10.0.5.15/24 dev eth0.5
ip link set eth0.5 up
ping -c 20 -i 0.02 10.0.5.2
ping -c 20 -i 0.02 -s 1472 10.0.5.2
expect "frames with the VLAN's tag on the host" "$(host_seen 'vlan 5 and icmp[icmptype] == 8' ping -c 20 -i 0.02 10.0.5.2)" 20
expect "frames of the VLAN" "$(tagged 5)" 50
expect "frames of another VLAN" "$(tagged 7)" 0
ip link add link eth0 name eth0.7 type vlan id 7
ip link set eth0.7 up
expect "frames of the other when it is there" "$(tagged 7)" 50
ip link del eth0.7
expect "frames of the other when it is gone" "$(tagged 7)" 0
ping -c 20 -i 0.02 10.0.5.2
ping -c 20 -i 0.02 10.0.2.2
"#,
        check: |outcome| {
            booted_once(outcome)?;
            all_pings_answered(outcome, 4, 20)
        },
        ..Case::PLAIN
    },
    Case {
        name: "mac",
        about: "the guest changes its address: frames have it, and come to it",
        guest: r#"
old=$(cat /sys/class/net/eth0/address) new=52:54:00:aa:00:01
sent_by() { host_seen "ether src $1 and icmp[icmptype] == 8" ping -c 20 -i 0.02 10.0.2.2; }
to_old() { seen "ether dst $old and icmp" "ping -q -c 50 -i 0.01 -W 1 10.0.2.77"; }
host "ip neigh replace 10.0.2.77 lladdr $old dev tap0 nud permanent"
expect "frames to the first address" "$(to_old)" 50
ip link set eth0 address $new || fail "the address cannot be changed"
# The host learns it from what the guest sends.
host 'ip neigh flush dev tap0 to 10.0.2.15' &
ping -c 1 10.0.2.2 >/dev/null
arping -q -c 1 -U -I eth0 10.0.2.15
wait
expect "frames from the new address" "$(sent_by $new)" 20
expect "frames from the first" "$(sent_by $old)" 0
expect "frames to the first" "$(to_old)" 0
host 'ip neigh show 10.0.2.15' | grep -q $new || fail "the host does not know the guest by its new address"
ping -c 20 -i 0.02 10.0.2.2
# A reset gives it the address back that it was made with.
function=$(basename "$(readlink -f /sys/class/net/eth0/device/..)")
echo $function >/sys/bus/pci/drivers/virtio-pci/unbind
echo $function >/sys/bus/pci/drivers/virtio-pci/bind
bring_up
expect "address after a reset" "$(cat /sys/class/net/eth0/address)" $old
arping -q -c 1 -U -I eth0 10.0.2.15
ping -c 20 -i 0.02 10.0.2.2
"#,
        check: |outcome| {
            booted_once(outcome)?;
            let pings = pings(&outcome.output)?;
            anyhow::ensure!(pings == [(20, 20); 2], "sent and answered: {pings:?}");
            Ok(())
        },
        ..Case::PLAIN
    },
];
