//! The command line, under QEMU's names.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::machine::layout::{GIB, MIB, RAM_MAX, RAM_MIN};
use crate::monitor::{Channel, ChannelError};

/// What the user asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Run a machine.
    Run(Options),
    /// Print how the VMM is used.
    Help,
    /// `-device help`, `-device TYPE,help`: print what can be asked for; the option's value.
    DeviceHelp(String),
    /// `-netdev help`, `-netdev KIND,help`: likewise.
    NetdevHelp(String),
    /// `-object help`, `-object TYPE,help`: likewise.
    ObjectHelp(String),
    /// Print which VMM it is.
    Version,
}

/// A machine as the command line describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `-netdev`, in the order given.
    pub netdevs: Vec<String>,
    /// `-object`, in the order given.
    pub objects: Vec<String>,
    /// `-device`, in the order given.
    pub devices: Vec<String>,
    /// `-monitor`, in the order given.
    pub monitors: Vec<String>,
    /// `-serial`: where the serial line's other end is.
    pub serial: Serial,
    /// `-S`: the processors wait for `cont`.
    pub paused: bool,
    /// `-kernel`: a bzImage or ELF kernel. Without one the embedded guest runs.
    pub kernel: Option<PathBuf>,
    /// `-initrd`
    pub initrd: Option<PathBuf>,
    /// `-append`: the kernel's command line.
    pub append: Option<String>,
    /// `-m`: bytes of RAM.
    pub ram: u64,
    /// `-smp`: processors.
    pub vcpus: u8,
    /// `-no-reboot`: end where the guest resets the machine.
    pub no_reboot: bool,
    /// `-netns new`: enter a network namespace of its own first.
    pub own_network: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            netdevs: Vec::new(),
            objects: Vec::new(),
            devices: Vec::new(),
            monitors: Vec::new(),
            serial: Serial::default(),
            paused: false,
            kernel: None,
            initrd: None,
            append: None,
            ram: 128 * MIB,
            vcpus: 1,
            no_reboot: false,
            own_network: false,
        }
    }
}

/// Where a kernel's serial line ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Serial {
    /// On the terminal.
    #[default]
    Stdio,
    /// What the guest sends is written to a file; nothing comes back.
    File(PathBuf),
    /// Nowhere.
    None,
}

/// What is wrong with a command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// No such option.
    #[error("{0}: invalid option")]
    Unknown(String),
    /// The option needs a value.
    #[error("{0}: requires an argument")]
    NoValue(String),
    /// The value cannot be understood, or not be done.
    #[error("{option} {value}: {reason}")]
    BadValue {
        /// The option as given.
        option: String,
        /// Its value as given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An option that means something only with `-kernel`.
    #[error("{0} only allowed with -kernel option")]
    NeedsKernel(&'static str),
    /// An option that means something only with a `-monitor`.
    #[error("{0} only allowed with a -monitor that takes commands, cont for one")]
    NeedsMonitor(&'static str),
}

/// How the VMM is used.
pub const HELP: &str = "\
usage: vmm [options]

-netdev TYPE,id=ID[,...]     make a network backend; help, or TYPE,help, lists what there is
-object TYPE,id=ID[,...]     make an object: filter-dump captures a netdev's frames in a pcap file;
                             help, or TYPE,help, lists what there is
-device DRIVER[,PROP=...]    make a device; help, or DRIVER,help, lists what there is
-kernel FILE                 boot this bzImage or ELF kernel
-initrd FILE                 its initial file system
-append LINE                 its command line
-m MEGABYTES                 memory; with suffix M or G (default 128)
-smp N                       processors, 1 to 8 (default 1)
-serial stdio|file:PATH|none where the serial line of -kernel ends (default stdio)
-monitor CHANNEL             control the running machine by QEMU's human monitor on a channel:
                             unix:PATH[,server=on[,wait=off]], tcp:[HOST]:PORT[,server=on[,wait=off]],
                             stdio (with another -serial), none; its command help lists the others
-S                           let the processors wait for the monitor's cont
-no-reboot                   end when the guest resets the machine
-netns new                   enter a network namespace of its own first
-help, -version

Each option may have one dash or two. Without -kernel an embedded guest runs, which pings the host
through its NIC and ends, or with -monitor goes on answering pings until quit; without -netdev and -device it has
  -netdev tap,id=tap0,ip=10.0.2.2/24 -device virtio-net-pci,netdev=tap0
in a network namespace of its own, where the host lets it have one.
With -kernel the serial line is on the terminal: Ctrl-A x ends the VMM, Ctrl-A Ctrl-A sends Ctrl-A.
Ctrl-C ends it without.

Status: 0 the guest powered off (or reset, with -no-reboot), or all its pings were answered; 1 the
VMM could not go on, or the embedded guest could not drive its NIC or got no answer; 2 the guest
crashed; 3 the embedded guest took too long.
";

/// Reads the arguments that follow the program's name.
///
/// # Errors
/// Whatever the user has to change.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, UsageError> {
    let mut arguments = arguments.into_iter();
    let mut options = Options::default();
    let mut serial_given = false;
    while let Some(argument) = arguments.next() {
        let given = argument.to_string_lossy().into_owned();
        let name = given
            .strip_prefix("--")
            .or_else(|| given.strip_prefix('-'))
            .ok_or_else(|| UsageError::Unknown(given.clone()))?;
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| UsageError::NoValue(given.clone()))
        };
        match name {
            "netdev" => match text(&given, value()?)? {
                asked if asks_for_help(&asked, "type") => return Ok(Command::NetdevHelp(asked)),
                netdev => options.netdevs.push(netdev),
            },
            "device" => match text(&given, value()?)? {
                asked if asks_for_help(&asked, "driver") => return Ok(Command::DeviceHelp(asked)),
                device => options.devices.push(device),
            },
            "object" => match text(&given, value()?)? {
                asked if asks_for_help(&asked, "qom-type") => {
                    return Ok(Command::ObjectHelp(asked));
                }
                object => options.objects.push(object),
            },
            "monitor" => options.monitors.push(text(&given, value()?)?),
            "serial" => {
                serial_given = true;
                options.serial = checked(&given, value()?, serial)?;
            }
            "S" => options.paused = true,
            "kernel" => options.kernel = Some(value()?.into()),
            "initrd" => options.initrd = Some(value()?.into()),
            "append" => options.append = Some(text(&given, value()?)?),
            "m" => options.ram = checked(&given, value()?, ram)?,
            "smp" => options.vcpus = checked(&given, value()?, vcpus)?,
            "no-reboot" => options.no_reboot = true,
            "netns" => options.own_network = checked(&given, value()?, netns)?,
            "help" | "h" => return Ok(Command::Help),
            "version" => return Ok(Command::Version),
            _ => return Err(UsageError::Unknown(given)),
        }
    }
    if options.kernel.is_none() {
        if options.append.is_some() {
            return Err(UsageError::NeedsKernel("-append"));
        }
        if options.initrd.is_some() {
            return Err(UsageError::NeedsKernel("-initrd"));
        }
        if serial_given {
            return Err(UsageError::NeedsKernel("-serial"));
        }
    }
    if options.paused && options.monitors.iter().all(|monitor| monitor == "none") {
        return Err(UsageError::NeedsMonitor("-S"));
    }
    // The guest's output is on standard output as long as its serial line is.
    let mut on_terminal = usize::from(options.serial == Serial::Stdio);
    for monitor in &options.monitors {
        on_terminal += usize::from(Channel::is_stdio(monitor));
        if on_terminal > 1 && Channel::is_stdio(monitor) {
            return Err(UsageError::BadValue {
                option: "-monitor".into(),
                value: monitor.clone(),
                reason: ChannelError::StdioTaken.to_string(),
            });
        }
    }
    Ok(Command::Run(options))
}

/// Whether the value of `-netdev` or `-device` asks for help; `first` is the key of its first word.
fn asks_for_help(value: &str, first: &str) -> bool {
    let options = keyval::Options::parse(value, Some(first));
    options.wants_help() || options.get(first).is_some_and(keyval::help::is_help)
}

fn text(option: &str, value: OsString) -> Result<String, UsageError> {
    value.into_string().map_err(|value| UsageError::BadValue {
        option: option.to_owned(),
        value: value.to_string_lossy().into_owned(),
        reason: "not UTF-8".into(),
    })
}

fn checked<T>(
    option: &str,
    value: OsString,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, UsageError> {
    let value = text(option, value)?;
    parse(&value).map_err(|reason| UsageError::BadValue {
        option: option.to_owned(),
        value,
        reason,
    })
}

fn ram(value: &str) -> Result<u64, String> {
    let number = value.strip_prefix("size=").unwrap_or(value);
    let (digits, unit) = match number.find(|c: char| !c.is_ascii_digit()) {
        None => (number, MIB),
        Some(end) => match &number[end..] {
            "M" | "m" => (&number[..end], MIB),
            "G" | "g" => (&number[..end], GIB),
            _ => return Err("expected a number of megabytes, or one with suffix M or G".into()),
        },
    };
    let bytes = digits
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(unit))
        .ok_or("expected a number of megabytes, or one with suffix M or G")?;
    if !(RAM_MIN..=RAM_MAX).contains(&bytes) {
        return Err(format!(
            "memory must be between {} and {} MiB",
            RAM_MIN / MIB,
            RAM_MAX / MIB
        ));
    }
    Ok(bytes)
}

fn vcpus(value: &str) -> Result<u8, String> {
    let count = value.strip_prefix("cpus=").unwrap_or(value);
    match count.parse() {
        Ok(count @ 1..=MAX_VCPUS) => Ok(count),
        _ => Err(format!(
            "expected a number of processors from 1 to {MAX_VCPUS}"
        )),
    }
}

fn serial(value: &str) -> Result<Serial, String> {
    match value {
        "stdio" => Ok(Serial::Stdio),
        "none" | "null" => Ok(Serial::None),
        _ => match value.strip_prefix("file:") {
            Some(path) if !path.is_empty() => Ok(Serial::File(path.into())),
            _ => Err("expected \"stdio\", \"none\" or file:PATH".into()),
        },
    }
}

fn netns(value: &str) -> Result<bool, String> {
    if value == "new" {
        Ok(true)
    } else {
        Err("expected \"new\"".into())
    }
}

const MAX_VCPUS: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &str) -> Result<Command, UsageError> {
        parse(words.split_whitespace().map(OsString::from))
    }

    #[test]
    fn one_dash_and_two_mean_the_same() {
        let words = "-netdev tap,id=a -device x,netdev=a -device y -kernel K -initrd I \
                     -append quiet -m 256 -smp 2 -no-reboot -object o -monitor unix:m -serial none -S";
        let expected = Options {
            netdevs: vec!["tap,id=a".into()],
            objects: vec!["o".into()],
            devices: vec!["x,netdev=a".into(), "y".into()],
            monitors: vec!["unix:m".into()],
            serial: Serial::None,
            paused: true,
            kernel: Some("K".into()),
            initrd: Some("I".into()),
            append: Some("quiet".into()),
            ram: 256 * MIB,
            vcpus: 2,
            no_reboot: true,
            own_network: false,
        };
        assert_eq!(parse_words(words), Ok(Command::Run(expected.clone())));
        let words = words.replace(" -", " --");
        assert_eq!(parse_words(&words), Ok(Command::Run(expected)));
    }

    #[test]
    fn help_of_devices_and_netdevs_comes_before_any_machine() {
        let device = |text: &str| Ok(Command::DeviceHelp(text.into()));
        let netdev = |text: &str| Ok(Command::NetdevHelp(text.into()));
        let table = [
            ("-device help", device("help")),
            ("-m 64 -device ?", device("?")),
            ("-device driver=help", device("driver=help")),
            ("-device x,help -nosuch", device("x,help")),
            ("-netdev help -device help", netdev("help")),
            ("--netdev tap,help", netdev("tap,help")),
            (
                "-object filter-dump,help",
                Ok(Command::ObjectHelp("filter-dump,help".into())),
            ),
        ];
        for (words, expected) in table {
            assert_eq!(parse_words(words), expected, "{words}");
        }
        let expected = Options {
            devices: vec!["help=x".into(), "x,id=help".into()],
            ..Options::default()
        };
        let words = "-device help=x -device x,id=help";
        assert_eq!(parse_words(words), Ok(Command::Run(expected)));
    }

    #[test]
    fn memory_sizes_are_as_in_qemu() {
        let table = [
            ("256", Some(256 * MIB)),
            ("256M", Some(256 * MIB)),
            ("2G", Some(2 * GIB)),
            ("size=1g", Some(GIB)),
            ("1", None),
            ("", None),
            ("M", None),
            ("256MB", None),
            ("1.5G", None),
            ("-1", None),
            ("99999999999999999999G", None),
            ("18014398509481984", None),
            ("1é", None),
        ];
        for (value, expected) in table {
            assert_eq!(ram(value).ok(), expected, "{value:?}");
        }
    }

    #[test]
    fn mistakes_are_told_in_one_line_that_names_the_option() {
        let table = [
            ("-nosuch", "-nosuch: invalid option"),
            ("kernel", "kernel: invalid option"),
            ("--smp", "--smp: requires an argument"),
            (
                "-smp 0",
                "-smp 0: expected a number of processors from 1 to 8",
            ),
            (
                "-smp 9",
                "-smp 9: expected a number of processors from 1 to 8",
            ),
            ("-m 1", "-m 1: memory must be between 16 and"),
            (
                "-monitor stdio",
                "-monitor stdio: cannot use stdio by multiple character devices",
            ),
            (
                "-kernel k -serial none -monitor stdio -monitor stdio",
                "-monitor stdio: cannot use stdio by multiple character devices",
            ),
            ("-serial none", "-serial only allowed with -kernel option"),
            (
                "-serial file:",
                "-serial file:: expected \"stdio\", \"none\" or file:PATH",
            ),
            ("-netns old", "-netns old: expected \"new\""),
            ("-append x", "-append only allowed with -kernel option"),
            ("-initrd x", "-initrd only allowed with -kernel option"),
            ("-S", "-S only allowed with a -monitor"),
            ("-S -monitor none", "-S only allowed with a -monitor"),
        ];
        for (words, expected) in table {
            let error = parse_words(words).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{words}: {error}");
            assert!(!error.contains('\n'));
        }
    }
}
