//! Whether a case is one for the kind of device that a whole call asks for.
//!
//! `--device` and `--netdev` add to what a case has, and the case's own prevail. Where they contradict each other, the
//! case would show nothing of the kind that was asked for: it is left out, with the reason.

use anyhow::Result;

use super::cases::Case;
use super::vmm::{self, Extra};

/// Properties of the modern interface: without that there is nothing for them to have an effect on.
const MODERN: &[&str] = &[
    "packed",
    "in_order",
    "rss",
    "hash",
    "iommu_platform",
    "suspend",
    "guest_rsc_ext",
];
/// Properties that say nothing without a control queue.
const CONTROLLED: &[&str] = &["mq", "rss", "hash"];

/// Why `case` shows nothing of what the call adds; `None` where it does.
///
/// # Errors
/// When the case's arguments are no shell words.
pub(crate) fn unfit(case: &Case, extra: &Extra) -> Result<Option<String>> {
    let (device, netdev) = own(case)?;
    let added = pairs(&extra.device).chain(pairs(&extra.netdev));
    for (name, value) in added {
        if let Some((_, reason)) =
            (case.not_with.iter()).find(|(pair, _)| pair.split_once('=') == Some((name, value)))
        {
            return Ok(Some((*reason).to_owned()));
        }
    }
    for (own, added) in [(&device, &extra.device), (&netdev, &extra.netdev)] {
        for (name, value) in pairs(added) {
            if let Some(other) = set_to(own, name).find(|other| *other != value) {
                return Ok(Some(format!("its own has {name}={other}")));
            }
        }
    }
    for (condition, names) in [("disable-modern=on", MODERN), ("ctrl_vq=off", CONTROLLED)] {
        let has_it = pairs(&device).any(|(name, value)| format!("{name}={value}") == condition);
        let lost =
            pairs(&extra.device).find(|(name, value)| names.contains(name) && *value == "on");
        if let Some((name, _)) = lost.filter(|_| has_it) {
            return Ok(Some(format!(
                "its own has {condition}, which leaves no {name}"
            )));
        }
    }
    Ok(None)
}

/// What a case sets of its network devices, and of its taps.
fn own(case: &Case) -> Result<(String, String)> {
    let mut device = case.device.to_owned();
    let mut netdev = String::new();
    let words = vmm::split(case.vmm_args.unwrap_or_default())?;
    for (option, value) in words.iter().zip(words.iter().skip(1)) {
        let list = match option.trim_start_matches('-') {
            "device" if value.starts_with("virtio-net") => &mut device,
            "netdev" if value.starts_with("tap") => &mut netdev,
            _ => continue,
        };
        list.push(',');
        list.push_str(value);
    }
    Ok((device, netdev))
}

/// The names and values in a list of options.
fn pairs(list: &str) -> impl Iterator<Item = (&str, &str)> {
    list.split(',').filter_map(|pair| pair.split_once('='))
}

/// What a list sets `name` to; one of several devices may not set it, another may.
fn set_to<'a>(list: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    pairs(list)
        .filter(move |pair| pair.0 == name)
        .map(|pair| pair.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::cases;

    fn reason(name: &str, device: &str, netdev: &str) -> Option<String> {
        let case = cases::all().find(|case| case.name == name).unwrap();
        let extra = Extra {
            device: device.to_owned(),
            netdev: netdev.to_owned(),
        };
        unfit(case, &extra).unwrap()
    }

    #[test]
    fn a_case_is_left_out_where_its_own_device_is_another_and_only_there() {
        let legacy = "disable-modern=on,disable-legacy=off";
        let expected: [(&str, &str, &str, Option<&str>); 12] = [
            ("ping", "packed=on", "queues=2", None),
            ("packed", "packed=on", "", None),
            (
                "legacy",
                "packed=on",
                "",
                Some("its own has disable-modern=on, which leaves no packed"),
            ),
            ("legacy", "packed=off", "", None),
            ("legacy", legacy, "", None),
            (
                "ring-size",
                legacy,
                "",
                Some("its own has disable-modern=off"),
            ),
            ("rss", legacy, "", Some("its own has disable-modern=off")),
            ("intx", "vectors=4", "", Some("its own has vectors=0")),
            (
                "bare",
                "mq=on",
                "queues=2",
                Some("its own has ctrl_vq=off, which leaves no mq"),
            ),
            ("mq", "mq=on,rss=on", "queues=2", None),
            ("mq", "mq=off", "", Some("its own has mq=on")),
            ("mq", "", "queues=4", Some("its own has queues=2")),
        ];
        for (name, device, netdev, wanted) in expected {
            let found = reason(name, device, netdev);
            assert_eq!(found.as_deref(), wanted, "{name} with {device} {netdev}");
        }
        assert!(cases::all().all(|case| reason(case.name, "", "").is_none()));
    }

    #[test]
    fn a_case_says_itself_what_it_is_not_for() {
        let case = Case {
            not_with: &[("hash=on", "the driver has no room for it")],
            ..*cases::all().next().unwrap()
        };
        for (device, wanted) in [
            ("mq=on,hash=on", Some("the driver has no room for it")),
            ("mq=on,hash=off", None),
        ] {
            let extra = Extra {
                device: device.to_owned(),
                netdev: String::new(),
            };
            assert_eq!(unfit(&case, &extra).unwrap().as_deref(), wanted, "{device}");
        }
    }
}
