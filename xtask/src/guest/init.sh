#!/bin/sh
# The guest's first process: mounts, loads the virtio modules, brings eth0 up, runs /run/commands
# between markers on the serial console, powers off.
export PATH=/sbin:/bin HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /tmp /root
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
. /run/config
exec </dev/null >/dev/ttyS0 2>&1
stty -F /dev/ttyS0 raw -echo
modprobe virtio_pci
modprobe virtio_net
ip link set lo up
tries=0
while [ ! -e /sys/class/net/eth0 ] && [ $tries -lt 20 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
if [ -e /sys/class/net/eth0 ]; then
    /sbin/ip addr add 10.0.2.15/24 dev eth0
    /sbin/ip link set eth0 up
    # The link shows a moment later, or not at all where the case wants it so.
    tries=0
    until grep -q up /sys/class/net/eth0/operstate || [ $tries -ge 20 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
else
    echo "init: no eth0 has appeared"
fi
# From here on the kernel's messages go to dmesg alone, but for its last words.
dmesg -n 1
# doing: what the processes wait for in the kernel, each by its name.
doing() {
    for process in /proc/[0-9]*; do
        # The kernel's own have no program.
        [ -e $process/exe ] || continue
        read -r name <$process/comm || continue
        # Which has no end of line.
        place=
        read -r place <$process/wchan
        printf ' %s(%s)' "$name" "$place"
    done 2>/dev/null
}
(
    signs=0
    while sleep 3; do
        printf '@@guest:%s:alive@@\n' "$WORD"
        signs=$((signs + 1))
        # Twice in the minute after which most commands that say nothing are given up.
        [ $((signs % 8)) != 0 ] || printf '@@guest:%s:doing:%s@@\n' "$WORD" "$(doing)"
    done
) &
printf '@@guest:%s:begin@@\n' "$WORD"
sh /run/commands
status=$?
printf '@@guest:%s:end:%d@@\n' "$WORD" $status
[ $status = 0 ] || dmesg | tail -n 40
poweroff -f
sleep 1000
