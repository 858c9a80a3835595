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
host_listens() { host "netstat -ltn" | grep -q ":$1 "; }
# An input that never ends: nc stops sending when its input does.
mkfifo /tmp/.endless 2>/dev/null
exec 9<>/tmp/.endless
