# Put before the commands that run in the guest.
# busybox's shell prefers its own applets to what PATH has.
ip() { /sbin/ip "$@"; }
tc() { /sbin/tc "$@"; }
reboot() {
    printf '@@guest:%s:reboot@@\n' "$WORD" >/dev/ttyS0
    busybox reboot -f
    sleep 1000
}
# host COMMANDS: runs them in the host's shell, prints what they print, returns their status.
host() {
    _reply=$(printf '%s\n' "$*" | nc 10.0.2.2 9000)
    case $_reply in
    *@status:*) ;;
    *) echo "the host did not answer: $_reply"; return 125 ;;
    esac
    printf '%s' "${_reply%@status:*}"
    return "${_reply##*@status:}"
}
fail() { echo "FAILED: $*"; exit 1; }
# expect WHAT GOT WANTED
expect() {
    [ "$2" = "$3" ] || fail "$1 is '$2', not '$3'"
    echo "$1 is '$2'"
}
# wait_for SECONDS WHAT COMMAND...: tries the command ten times a second.
wait_for() {
    _left=$(($1 * 10)) _what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        _left=$((_left - 1))
        [ $_left -gt 0 ] || fail "$_what: not so after waiting"
        sleep 0.1
    done
}
# at_least WHAT GOT MINIMUM, at_most WHAT GOT MAXIMUM
at_least() {
    [ "$2" -ge "$3" ] || fail "$1 is $2, less than $3"
    echo "$1 is $2, at least $3"
}
at_most() {
    [ "$2" -le "$3" ] || fail "$1 is $2, more than $3"
    echo "$1 is $2, at most $3"
}
host_listens() { host "netstat -ltn" | grep -q ":$1 "; }
# An input that never ends: nc stops sending when its input does.
mkfifo /tmp/.endless 2>/dev/null
exec 9<>/tmp/.endless
# bring_up: gives eth0 its address after its driver was bound.
bring_up() {
    wait_for 10 "eth0 appears" test -e /sys/class/net/eth0
    ip addr add 10.0.2.15/24 dev eth0
    ip link set eth0 up
    wait_for 10 "carrier" grep -q 1 /sys/class/net/eth0/carrier
}
# feature BIT: 1 where driver and device agreed on it.
feature() { cut -c $(($1 + 1)) /sys/class/net/eth0/device/features; }
# pass_both_ways: sees that bytes of streams come and go.
pass_both_ways() {
    _rx=$(counter rx_bytes) _tx=$(counter tx_bytes)
    sleep 0.5
    at_least "bytes received" $(($(counter rx_bytes) - _rx)) 50000
    at_least "bytes sent" $(($(counter tx_bytes) - _tx)) 50000
}
# counter NAME: of eth0's statistics.
counter() { cat /sys/class/net/eth0/statistics/$1; }
# frame_size DIRECTION BEFORE: bytes a frame, rx or tx, since `frames DIRECTION` printed BEFORE.
frames() { echo "$(counter $1_bytes) $(counter $1_packets)"; }
frame_size() {
    set -- "$(frames $1)" "$2"
    echo $(((${1% *} - ${2% *}) / (${1#* } - ${2#* } + 1)))
}
# interrupts NAME: how often the interrupt came, on all processors.
interrupts() {
    awk -v name="$1" '$NF == name { for (i = 2; i < NF; i++) if ($i ~ /^[0-9]+$/) n += $i }
        END { print n + 0 }' /proc/interrupts
}
# rate: kbit/s that arrived by what iperf3 has written to /tmp/stream. The last line is all streams' together.
rate() {
    awk '/receiver/ { for (i = 2; i <= NF; i++) if ($i == "Kbits/sec") rate = int($(i - 1)) }
        END { print rate }' /tmp/stream
}
# stream ARGUMENTS: iperf3 with them; at least a megabit a second arrives.
stream() {
    iperf3 -c 10.0.2.2 -f k "$@" >/tmp/stream 2>&1 || { cat /tmp/stream; fail "iperf3 $*"; }
    grep receiver /tmp/stream || fail "iperf3 $* told nothing of its receiver"
    at_least "iperf3 $*: kbit/s" "$(rate)" 1000
}
# fragments: how many IP fragments this machine has made.
fragments() { awk '/^Ip:/ { n = $20 } END { print n }' /proc/net/snmp; }
# icmp NAME: the IP stack's counter of that name.
icmp() {
    awk -v name="$1" '/^Icmp:/ { if (column) print $column; else for (i = 2; i <= NF; i++) if ($i == name) column = i }' \
        /proc/net/snmp
}
# has_capability ID: whether eth0's PCI function has one with this number.
has_capability() {
    _config=$(readlink -f /sys/class/net/eth0/device/..)/config
    _at=52
    while _at=$(od -An -tu1 -N1 -j$_at $_config | tr -d ' ') && [ $_at != 0 ]; do
        [ $(od -An -tu1 -N1 -j$_at $_config) != $1 ] || return 0
        _at=$((_at + 1))
    done
    return 1
}
# seen EXPRESSION COMMAND: how many such frames the driver hands up while the host runs the command: of
# eth0, or of the interface that SEEN_ON names.
# The capture leaves the device's filters as they are. Its buffer has room for 32 frames of any
# size, and for thousands of short ones.
seen() {
    rm -f /tmp/seen.log
    tcpdump -Z root -l -n --immediate-mode -s 128 -p -i ${SEEN_ON:-eth0} "$1" >/tmp/seen 2>/tmp/seen.log &
    _capture=$!
    wait_for 20 "tcpdump listens" grep -q listening /tmp/seen.log
    host "$2" >/dev/null
    # The program may be late on a busy machine: it is done when it writes no more.
    _lines=-1
    until [ $_lines = "$(grep -c . /tmp/seen)" ]; do
        _lines=$(grep -c . /tmp/seen)
        sleep 1
    done
    kill $_capture
    wait $_capture
    # tcpdump ends with an empty line.
    grep -c . /tmp/seen
}
# host_seen EXPRESSION COMMAND...: how many such frames pass the host's tap0 while the guest runs the
# command.
host_seen() {
    host "rm -f /tmp/seen.log; tcpdump -Z root -l -n --immediate-mode -s 128 -p -i tap0 '$1' >/tmp/seen 2>/tmp/seen.log &
        echo \$! >/tmp/seen.pid"
    wait_for 20 "tcpdump listens on the host" host 'grep -q listening /tmp/seen.log'
    shift
    "$@" >/dev/null
    sleep 1
    host 'kill $(cat /tmp/seen.pid); grep -c . /tmp/seen'
}
