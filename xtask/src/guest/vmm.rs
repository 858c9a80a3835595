//! The VMM under test: how it is built and which arguments it gets.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::assets::{read, run};

/// Replaces the VMM that would be built: the path of a program that needs nothing but a kernel.
const OVERRIDE: &str = "GUEST_VMM";

/// More for the guest's kernel command line; `loglevel=8` shows how far a boot gets.
const APPEND: &str = "GUEST_APPEND";

const TARGET: &str = "x86_64-unknown-linux-gnu";

const NETDEV: &str = "tap,id=net0,ip=10.0.2.2/24";
const DEVICE: &str = "virtio-net-pci,netdev=net0";

/// Builds the example VMM so that it needs no library, and returns the executable.
pub(crate) fn executable(workspace: &Path, cache: &Path) -> Result<Vec<u8>> {
    if let Some(path) = std::env::var_os(OVERRIDE) {
        return read(Path::new(&path)).context(OVERRIDE);
    }
    // A target directory of its own: other flags would make cargo build everything again, in turns.
    let directory = cache.join("build");
    if !directory.join(TARGET).is_dir() {
        eprintln!("guest: building the VMM");
    }
    run(Command::new(cargo())
        .args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "examples",
            "--example",
            "vmm",
        ])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&directory)
        .current_dir(workspace)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C strip=debuginfo",
        ))
    .context("building the VMM")?;
    read(&directory.join(TARGET).join("release/examples/vmm"))
}

/// The workspace's root and its target directory.
pub(crate) fn workspace() -> Result<(PathBuf, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask has no parent")?;
    // cargo marks its target directory, wherever that was asked to be, and built this program in it.
    let program = std::env::current_exe().context("finding this program")?;
    let marked = program
        .ancestors()
        .find(|directory| directory.join("CACHEDIR.TAG").is_file());
    let target = marked.map_or_else(|| root.join("target"), Path::to_owned);
    Ok((root.to_owned(), target))
}

/// Options that a whole call adds to those of each run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extra {
    /// Properties for each network device, before its own, which prevail.
    pub(crate) device: String,
    /// Options for each tap, likewise.
    pub(crate) netdev: String,
}

/// The VMM's arguments but for kernel and initramfs.
///
/// `replaced` stands for the default netdev and device; `properties` are appended to the default device,
/// or to each network device of `replaced`. Memory, processors and command line are added where `replaced`
/// does not set them.
pub(crate) fn arguments(
    replaced: Option<&str>,
    properties: &str,
    extra: &Extra,
    smp: u8,
) -> Result<Vec<String>> {
    let mut arguments = match replaced {
        Some(text) => split(text)?,
        None => ["-netdev", NETDEV, "-device", DEVICE]
            .map(str::to_owned)
            .to_vec(),
    };
    let mut devices = 0;
    let mut option = String::new();
    for argument in &mut arguments {
        let name = option.trim_start_matches('-').to_owned();
        option.clone_from(argument);
        let kind = argument.split(',').next().unwrap_or_default();
        match &*name {
            "device" if kind.starts_with("virtio-net") => {
                devices += 1;
                insert_options(argument, &extra.device);
                append_options(argument, properties);
            }
            "netdev" if kind == "tap" => insert_options(argument, &extra.netdev),
            _ => {}
        }
    }
    if devices == 0 && !(properties.is_empty() && extra.device.is_empty()) {
        bail!("no virtio-net device takes the properties: {arguments:?}");
    }
    let position = |arguments: &[String], name: &str| {
        arguments
            .iter()
            .position(|a| a.starts_with('-') && a.trim_start_matches('-') == name)
    };
    let smp = smp.to_string();
    for (name, value) in [("m", "256"), ("smp", &smp)] {
        if position(&arguments, name).is_none() {
            arguments.extend([format!("-{name}"), value.to_owned()]);
        }
    }
    let command_line = match std::env::var(APPEND) {
        Ok(more) => format!("{COMMAND_LINE} {more}"),
        Err(_) => COMMAND_LINE.to_owned(),
    };
    match position(&arguments, "append").and_then(|at| arguments.get_mut(at + 1)) {
        Some(line) => *line = format!("{command_line} {line}"),
        None => arguments.extend(["-append".to_owned(), command_line]),
    }
    Ok(arguments)
}

/// Puts `more` behind the first word of an option string.
fn insert_options(text: &mut String, more: &str) {
    if !more.is_empty() {
        let end = text.find(',').unwrap_or(text.len());
        text.insert_str(end, &format!(",{more}"));
    }
}

/// Puts `more` at the end of an option string.
fn append_options(text: &mut String, more: &str) {
    if !more.is_empty() {
        text.push(',');
        text.push_str(more);
    }
}

/// Splits a line into words as a shell would: blanks separate, quotes and backslashes protect.
pub(crate) fn split(line: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some('"'), '\\') => match chars.next() {
                Some(next @ ('"' | '\\' | '$' | '`')) => word.get_or_insert_default().push(next),
                Some(next) => word.get_or_insert_default().extend(['\\', next]),
                None => bail!("a backslash ends the line: {line}"),
            },
            (Some(_), _) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '\\') => match chars.next() {
                Some(next) => word.get_or_insert_default().push(next),
                None => bail!("a backslash ends the line: {line}"),
            },
            (None, ' ' | '\t' | '\n') => words.extend(word.take()),
            (None, _) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(open) = quote {
        bail!("no closing {open} in: {line}");
    }
    words.extend(word);
    Ok(words)
}

/// One word for a shell.
pub(crate) fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// What the guest's kernel is told. Few messages: under nested emulation each character counts.
const COMMAND_LINE: &str = "console=ttyS0 earlyprintk=ttyS0 loglevel=4";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_split_as_a_shell_splits_it() {
        let cases: [(&str, &[&str]); 6] = [
            ("", &[]),
            ("  -a  b\tc\n", &["-a", "b", "c"]),
            (
                r#"-append 'console=ttyS0 quiet' x"y z"w"#,
                &["-append", "console=ttyS0 quiet", "xy zw"],
            ),
            (r#"a\ b "c\"d" '\' "\n""#, &["a b", "c\"d", "\\", "\\n"]),
            (r#"'' """#, &["", ""]),
            (
                r"mac=52:54:00:12:34:57,id='n 1'",
                &["mac=52:54:00:12:34:57,id=n 1"],
            ),
        ];
        for (line, expected) in cases {
            assert_eq!(split(line).unwrap(), expected, "{line}");
        }
        for line in ["'a", "\"a", "a\\", "\"a\\"] {
            assert!(split(line).is_err(), "{line}");
        }
    }

    #[test]
    fn properties_go_to_the_devices_and_replaced_options_keep_what_they_set() {
        let none = Extra::default();
        let plain = arguments(None, "mac=52:54:00:12:34:57", &none, 2).unwrap();
        assert!(plain.contains(&"virtio-net-pci,netdev=net0,mac=52:54:00:12:34:57".to_owned()));
        assert!(plain.windows(2).any(|w| w == ["-smp", "2"]));

        let replaced = arguments(Some("--smp 4 -append 'a b' -device x"), "", &none, 1).unwrap();
        assert!(!replaced.iter().any(|a| a.contains("net0")));
        assert_eq!(replaced.iter().filter(|a| a.ends_with("-smp")).count(), 1);
        assert!(replaced.contains(&format!("{COMMAND_LINE} a b")));
        assert!(arguments(Some("-device x"), "mac=1", &none, 1).is_err());
    }

    #[test]
    fn what_a_call_adds_comes_before_what_a_case_sets() {
        let extra = Extra {
            device: "packed=on,vectors=9".into(),
            netdev: "queues=2".into(),
        };
        let plain = arguments(None, "vectors=0", &extra, 1).unwrap();
        let device = "virtio-net-pci,packed=on,vectors=9,netdev=net0,vectors=0";
        assert_eq!(
            plain.get(..4).unwrap(),
            [
                "-netdev",
                "tap,queues=2,id=net0,ip=10.0.2.2/24",
                "-device",
                device
            ]
        );
        let own = "-netdev tap,id=a -device virtio-net-pci,netdev=a -device virtio-net,netdev=b -device x";
        let replaced = arguments(Some(own), "", &extra, 1).unwrap();
        assert_eq!(
            replaced.get(1..8).unwrap(),
            [
                "tap,queues=2,id=a",
                "-device",
                "virtio-net-pci,packed=on,vectors=9,netdev=a",
                "-device",
                "virtio-net,packed=on,vectors=9,netdev=b",
                "-device",
                "x"
            ]
        );
    }

    #[test]
    fn a_quoted_word_is_split_back_into_itself() {
        for word in ["", "plain", "it's", "a b\"c\\"] {
            assert_eq!(split(&quote(word)).unwrap(), [word], "{word}");
        }
    }
}
