//! The commands, with QEMU's names, arguments and words.

use std::fmt;
use std::sync::Arc;

use keyval::Options;

use super::line::Argument::{self, OnOff, OptionalWord, Rest, Word};
use super::line::arguments;
use super::network::info_network;
use super::qtree::info_qtree;
use crate::devices::{Devices, device_help, netdev_help, object_help};
use crate::machine::{CannotPause, Control, Event, RunPhase, RunState};

/// What a monitor works on.
#[derive(Clone, Debug)]
pub struct Console {
    /// Netdevs, devices, filters.
    pub devices: Arc<Devices>,
    /// Where it is told that the machine is to end.
    pub control: Arc<Control>,
    /// Whether the processors run.
    pub run_state: Arc<RunState>,
}

impl Console {
    /// Does what a line says; returns what is to be printed, whose every line ends.
    #[doc(alias = "handle_hmp_command")]
    pub fn execute(&self, line: &str) -> String {
        let (name, rest) = split(line);
        if name.is_empty() {
            return String::new();
        }
        let Some(command) = find(COMMANDS, name) else {
            return unknown(name);
        };
        let (item, _) = split(rest);
        if command.name == "info" && !item.is_empty() {
            let Some(topic) = find(TOPICS, item) else {
                return unknown(&format!("info {item}"));
            };
            let (_, rest) = split(rest);
            return self.run(topic, &format!("info {item}"), rest);
        }
        self.run(command, name, rest)
    }

    /// `typed` is how the user called the command.
    fn run(&self, command: &Command, typed: &str, rest: &str) -> String {
        let words = match arguments(command.name, command.takes, rest) {
            Ok(words) => words,
            Err(wrong) => return format!("{wrong}\nTry \"help {typed}\" for more information\n"),
        };
        match (command.run)(self, &Words(words)) {
            Ok(text) => text,
            Err(Failure(text)) => format!("Error: {text}\n"),
        }
    }

    fn help(&self, name: &str) -> String {
        let (name, rest) = split(name);
        let (item, _) = split(rest);
        match name {
            "" => list(COMMANDS, ""),
            "info" if item.is_empty() => list(TOPICS, "info "),
            "info" => find(TOPICS, item).map_or_else(
                || unknown(&format!("info {item}")),
                |topic| topic.line("info "),
            ),
            _ => find(COMMANDS, name).map_or_else(|| unknown(name), |command| command.line("")),
        }
    }

    fn status(&self) -> String {
        let status = match self.run_state.phase() {
            RunPhase::Running => "running",
            RunPhase::Prelaunch => "paused (prelaunch)",
            RunPhase::Paused => "paused",
            RunPhase::Ended => "paused (shutdown)",
        };
        format!("VM status: {status}\n")
    }

    /// `names` are network cards, with commas in between; all where there is none.
    fn announce_self(&self, names: &str) -> Outcome {
        let names: Vec<_> = names.split(',').filter(|name| !name.is_empty()).collect();
        self.devices
            .announce_self((!names.is_empty()).then_some(&names));
        DONE
    }

    fn device_add(&self, text: &str) -> Outcome {
        let options = Options::parse(text, Some("driver"));
        if asks_for_help(&options, "driver") {
            return help_of(device_help(text));
        }
        self.devices.plug(text)?;
        DONE
    }

    /// `name` is an id or a path.
    fn device_del(&self, name: &str) -> Outcome {
        self.devices.tree().device_del(name)?;
        DONE
    }

    fn netdev_add(&self, text: &str) -> Outcome {
        let options = Options::parse(text, Some("type"));
        if asks_for_help(&options, "type") {
            return help_of(netdev_help(text));
        }
        self.devices.netdevs().add_options(options)?;
        DONE
    }

    fn object_add(&self, text: &str) -> Outcome {
        let options = Options::parse(text, Some("qom-type"));
        if asks_for_help(&options, "qom-type") {
            return help_of(object_help(text));
        }
        self.devices.object_add(text)?;
        DONE
    }

    fn set_link(&self, name: &str, up: bool) -> Outcome {
        if self.devices.set_link(name, up) {
            return DONE;
        }
        Err(qdev::Error::DeviceNotFound(name.into()).into())
    }

    fn qom_list(&self, path: &str) -> Outcome {
        if path.is_empty() {
            return Ok("/\n".into());
        }
        let properties = self.devices.tree().qom_list(path)?;
        Ok(properties.iter().map(|line| format!("{line}\n")).collect())
    }

    fn qom_get(&self, path: &str, property: &str) -> Outcome {
        let value = self.devices.tree().qom_get(path, property)?;
        Ok(format!("{}\n", value.json()))
    }

    fn qom_set(&self, path: &str, property: &str, text: &str) -> Outcome {
        let object = self.devices.tree().find(path)?;
        qdev::set_text(&object, property, text).map_err(qdev::Error::from)?;
        DONE
    }

    fn qom_tree(&self, path: &str) -> Outcome {
        let path = if path.is_empty() { "/machine" } else { path };
        match self.devices.tree().qom_tree(path) {
            Err(qdev::Error::DeviceNotFound(path)) => {
                Ok(format!("Path '{path}' could not be resolved.\n"))
            }
            tree => Ok(tree?),
        }
    }

    fn save_device(&self, nic: &str, file: &str) -> Outcome {
        self.stands_still()?;
        let state = self.devices.save_nic(nic)?;
        std::fs::write(file, state)
            .map_err(|error| format!("Could not write '{file}': {error}"))?;
        DONE
    }

    fn restore_device(&self, nic: &str, file: &str) -> Outcome {
        self.stands_still()?;
        let state = std::fs::read(file);
        let state = state.map_err(|error| format!("Could not read '{file}': {error}"))?;
        self.devices.restore_nic(nic, &state)?;
        DONE
    }

    /// Whether nobody but the user works on devices.
    fn stands_still(&self) -> Result<(), Failure> {
        match self.run_state.phase() {
            RunPhase::Prelaunch | RunPhase::Paused => Ok(()),
            RunPhase::Running => Err(Failure("the machine runs: stop it first".into())),
            RunPhase::Ended => Err(CannotPause::Ended.into()),
        }
    }

    fn pause(&self, pause: bool) -> Outcome {
        self.run_state.ask(pause)?;
        DONE
    }

    fn report(&self, event: Event) -> Outcome {
        self.control.report(event);
        DONE
    }
}

/// A command, or a topic of `info`.
struct Command {
    /// Its name, and its short name behind a bar.
    name: &'static str,
    /// How its arguments look.
    usage: &'static str,
    help: &'static str,
    takes: &'static [Argument],
    run: fn(&Console, &Words) -> Outcome,
}

/// The arguments that a command was given.
struct Words(Vec<String>);

impl Words {
    /// Empty where there is none.
    fn at(&self, index: usize) -> &str {
        self.0.get(index).map_or("", String::as_str)
    }
}

/// What a command prints.
type Outcome = Result<String, Failure>;

/// What is wrong, without `Error: ` in front.
struct Failure(String);

impl<E: fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

const DONE: Outcome = Ok(String::new());

impl Command {
    fn line(&self, prefix: &str) -> String {
        let Self {
            name, usage, help, ..
        } = self;
        format!("{prefix}{name} {usage} -- {help}\n")
    }
}

fn find<'a>(commands: &'a [Command], name: &str) -> Option<&'a Command> {
    let is_name = |command: &&Command| command.name.split('|').any(|one| one == name);
    commands.iter().find(is_name)
}

fn list(commands: &[Command], prefix: &str) -> String {
    commands
        .iter()
        .map(|command| command.line(prefix))
        .collect()
}

fn unknown(name: &str) -> String {
    format!("unknown command: '{name}'\n")
}

/// The first word, and what follows it.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    text.split_at(text.find(char::is_whitespace).unwrap_or(text.len()))
}

fn asks_for_help(options: &Options, first: &str) -> bool {
    options.wants_help() || options.get(first).is_some_and(keyval::help::is_help)
}

fn help_of(help: Result<String, crate::devices::DeviceError>) -> Outcome {
    Ok(help.map_err(|error| error.without_option())?)
}

/// In the order in which `help` lists them: by name.
const COMMANDS: &[Command] = &[
    Command {
        name: "announce_self",
        usage: "[interfaces]",
        help: "let the guest announce itself: gratuitous ARP",
        takes: &[OptionalWord],
        run: |console, words| console.announce_self(words.at(0)),
    },
    Command {
        name: "cont|c",
        usage: "",
        help: "resume emulation",
        takes: &[],
        run: |console, _| console.pause(false),
    },
    Command {
        name: "device_add",
        usage: "driver[,prop=value][,...]",
        help: "add device, like -device on the command line",
        takes: &[Argument::Options],
        run: |console, words| console.device_add(words.at(0)),
    },
    Command {
        name: "device_del",
        usage: "device",
        help: "remove device",
        takes: &[Word],
        run: |console, words| console.device_del(words.at(0)),
    },
    Command {
        name: "help|?",
        usage: "[cmd]",
        help: "show the help",
        takes: &[Argument::OptionalRest],
        run: |console, words| Ok(console.help(words.at(0))),
    },
    Command {
        name: "info",
        usage: "[subcommand]",
        help: "show various information about the system state",
        takes: &[],
        run: |_, _| Ok(list(TOPICS, "info ")),
    },
    Command {
        name: "netdev_add",
        usage: "[tap],id=str[,prop=value][,...]",
        help: "add host network device",
        takes: &[Argument::Options],
        run: |console, words| console.netdev_add(words.at(0)),
    },
    Command {
        name: "netdev_del",
        usage: "id",
        help: "remove host network device",
        takes: &[Word],
        run: |console, words| {
            console.devices.netdevs().remove(words.at(0))?;
            DONE
        },
    },
    Command {
        name: "object_add",
        usage: "[qom-type=]type,id=str[,prop=value][,...]",
        help: "create QOM object",
        takes: &[Rest],
        run: |console, words| console.object_add(words.at(0)),
    },
    Command {
        name: "object_del",
        usage: "id",
        help: "destroy QOM object",
        takes: &[Word],
        run: |console, words| {
            console.devices.object_del(words.at(0))?;
            DONE
        },
    },
    Command {
        name: "qom-get",
        usage: "path property",
        help: "print QOM property",
        takes: &[Word, Word],
        run: |console, words| console.qom_get(words.at(0), words.at(1)),
    },
    Command {
        name: "qom-list",
        usage: "path",
        help: "list QOM properties",
        takes: &[OptionalWord],
        run: |console, words| console.qom_list(words.at(0)),
    },
    Command {
        name: "qom-set",
        usage: "path property value",
        help: "set QOM property",
        takes: &[Word, Word, Rest],
        run: |console, words| console.qom_set(words.at(0), words.at(1), words.at(2)),
    },
    Command {
        name: "quit|q",
        usage: "",
        help: "quit the emulator",
        takes: &[],
        run: |console, _| console.report(Event::Quit),
    },
    Command {
        name: "restore-device",
        usage: "nic file",
        help: "put a fresh network card in the place of one, to go on with the state in a file",
        takes: &[Word, Word],
        run: |console, words| console.restore_device(words.at(0), words.at(1)),
    },
    Command {
        name: "save-device",
        usage: "nic file",
        help: "write the state of a network card into a file",
        takes: &[Word, Word],
        run: |console, words| console.save_device(words.at(0), words.at(1)),
    },
    Command {
        name: "set_link",
        usage: "name on|off",
        help: "change the link status of a network adapter",
        takes: &[Word, OnOff],
        run: |console, words| console.set_link(words.at(0), words.at(1) == "on"),
    },
    Command {
        name: "stop|s",
        usage: "",
        help: "stop emulation",
        takes: &[],
        run: |console, _| console.pause(true),
    },
    Command {
        name: "system_reset",
        usage: "",
        help: "reset the system",
        takes: &[],
        run: |console, _| console.report(Event::Reset),
    },
];

/// What there is to be informed about.
const TOPICS: &[Command] = &[
    Command {
        name: "network",
        usage: "",
        help: "show the network state",
        takes: &[],
        run: |console, _| Ok(info_network(&console.devices)),
    },
    Command {
        name: "qom-tree",
        usage: "[path]",
        help: "show QOM composition tree",
        takes: &[OptionalWord],
        run: |console, words| console.qom_tree(words.at(0)),
    },
    Command {
        name: "qtree",
        usage: "",
        help: "show device tree",
        takes: &[],
        run: |console, _| Ok(info_qtree(console.devices.tree())),
    },
    Command {
        name: "status",
        usage: "",
        help: "show the current VM status (running|paused)",
        takes: &[],
        run: |console, _| Ok(console.status()),
    },
    Command {
        name: "version",
        usage: "",
        help: "show the version of the VMM",
        takes: &[],
        run: |_, _| Ok(concat!(env!("CARGO_PKG_VERSION"), "\n").into()),
    },
];
