//! A network namespace of the process's own.
#![expect(
    unsafe_code,
    reason = "unshare and the capability check are calls into the C library"
)]

use std::fs;
use std::io;

/// Why there is no namespace of one's own.
#[derive(Debug, thiserror::Error)]
#[error("cannot enter a network namespace of its own: {what}: {source}")]
pub struct NetnsError {
    what: &'static str,
    source: io::Error,
}

/// Moves the process into a network namespace of its own, and where it may not, into a user
/// namespace of its own first, in which it may. Its loopback interface stays down.
///
/// Must be called while the process has one thread.
///
/// # Errors
/// When the host allows neither.
pub fn enter_new() -> Result<(), NetnsError> {
    if may_administer_networks() && unshare(libc::CLONE_NEWNET).is_ok() {
        return Ok(());
    }
    // SAFETY: takes nothing and gives a number.
    let user = unsafe { libc::geteuid() };
    // SAFETY: takes nothing and gives a number.
    let group = unsafe { libc::getegid() };
    unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET).map_err(|source| NetnsError {
        what: "unshare (does the host allow user namespaces?)",
        source,
    })?;
    let write =
        |what, text: String| fs::write(what, text).map_err(|source| NetnsError { what, source });
    write("/proc/self/uid_map", format!("0 {user} 1"))?;
    // Groups can be mapped without privilege only once they can no more be dropped (user_namespaces(7)).
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/gid_map", format!("0 {group} 1"))
}

/// Whether the process may make interfaces where it is: CAP_NET_ADMIN.
pub fn may_administer_networks() -> bool {
    let Ok(status) = fs::read_to_string("/proc/self/status") else {
        return false;
    };
    effective_capabilities(&status).is_some_and(|set| set & CAP_NET_ADMIN != 0)
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: takes a number and gives one.
    if unsafe { libc::unshare(flags) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

const CAP_NET_ADMIN: u64 = 1 << 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_status_text() {
        let status = "Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t0000000000001000\n";
        assert_eq!(effective_capabilities(status), Some(CAP_NET_ADMIN));
        assert_eq!(effective_capabilities("Name: x"), None);
    }
}
