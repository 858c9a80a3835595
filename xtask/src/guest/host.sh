# The host's part of a run: the services that guests use, then the VMM.
# Standard output is the report, standard error the VMM's console. Runs as the init's last step in
# the emulated host, or in a chroot with namespaces of its own.
export PATH=/sbin:/bin HOME=/root TERM=dumb
ip() { /sbin/ip "$@"; }
ip link set lo up
(while :; do echo '@host alive'; sleep 2; done) &
iperf3 -s >/dev/null 2>&1 &
nc -ll -p 9000 -e /host/exec >/dev/null 2>&1 &
[ -e /dev/kvm ] || echo '@host no /dev/kvm'
[ -e /dev/net/tun ] || echo '@host no /dev/net/tun'
(. /host/before) </dev/null
echo '@host start'
# What is written to /tmp/serial is typed on the guest's serial line.
mkfifo /tmp/serial
exec 8<>/tmp/serial
sh /host/start-vmm <&8 >&2
status=$?
# On a serial port: all that the VMM has written goes out before its end is reported.
stty -echo <&2 2>/dev/null
echo "@host vmm $status"
(. /host/after) </dev/null
echo '@host done'
