#!/bin/sh
# The emulated host's first process: KVM and tun, then the run itself on serial ports of its own.
export PATH=/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /tmp /root
mount -t devpts devpts /dev/pts
for module in irqbypass kvm kvm-amd tun; do
    modprobe $module || echo "init: modprobe $module failed"
done
stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS2 raw -echo
sh /host/main </dev/null >/dev/ttyS2 2>/dev/ttyS1
sleep 1000
