//! The table beside this file: each test that it names exists, and no feature is offered that it says is not.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use iothread::EventLoop;
use net_client::{Frame, NetClient, Offloads, Port, Received, VnetHeader};
use virtio::net::F as NetF;
use virtio_bus::VirtioDevice;
use virtio_net::{VirtioNet, VirtioNetConfig};
use vm_memory::GuestMemoryMmap;

const TABLE: &str = include_str!("README.md");

/// The sections that demand something of a device for features that are built.
const SECTIONS: [&str; 16] = [
    "5.1.2",
    "5.1.3.1",
    "5.1.4.1",
    "5.1.6.2.2",
    "5.1.6.3.2",
    "5.1.6.4.1",
    "5.1.6.4.3",
    "5.1.6.5.1.1",
    "5.1.6.5.2.1",
    "5.1.6.5.3.1",
    "5.1.6.5.4.2",
    "5.1.6.5.6.2",
    "5.1.6.5.6.4",
    "5.1.6.5.7.3",
    "5.1.6.5.10.6",
    "5.1.6.5.11.12",
];

struct Row {
    section: &'static str,
    demand: &'static str,
    proof: &'static str,
}

fn rows() -> Vec<Row> {
    let rows: Vec<_> = (TABLE.lines())
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .map(|line| {
            let cells: Vec<_> = line.split(" | ").collect();
            let [section, demand, proof] = cells[..] else {
                panic!("a row of other than three cells: {line}");
            };
            Row {
                section,
                demand,
                proof,
            }
        })
        .skip(1)
        .collect();
    assert!(rows.len() > 50);
    rows
}

/// Where a test of this name is.
fn file(module: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if module.starts_with("src/") {
        root.join(format!("{module}.rs"))
    } else {
        root.join(format!("tests/{module}.rs"))
    }
}

#[test]
fn each_test_that_is_named_exists() {
    for row in rows() {
        let Some(test) = row.proof.strip_prefix('`') else {
            continue;
        };
        let (module, name) = test.strip_suffix('`').unwrap().split_once("::").unwrap();
        let place = file(module);
        let mut text = fs::read_to_string(&place).unwrap_or_else(|_| panic!("{}", row.proof));
        // Tests of a module that are in a file of their own.
        text += &fs::read_to_string(place.with_extension("").join("tests.rs")).unwrap_or_default();
        let wanted = format!("fn {name}() {{");
        let at = text
            .find(&wanted)
            .unwrap_or_else(|| panic!("{}", row.proof));
        let before = text[..at].trim_end();
        assert!(before.ends_with("#[test]"), "{} is no test", row.proof);
    }
}

#[test]
fn each_section_that_demands_something_has_its_row() {
    let there: BTreeSet<_> = rows().iter().map(|row| row.section).collect();
    for section in SECTIONS {
        assert!(there.contains(section), "{section}");
    }
}

/// A backend that can do all there is.
#[derive(Debug)]
struct Able;

impl NetClient for Able {
    fn receive(&self, _frame: &Frame<'_>) -> Received {
        Received::Taken
    }

    fn vnet_header(&self) -> Option<&dyn VnetHeader> {
        Some(self)
    }
}

impl VnetHeader for Able {
    fn supported_offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn header_len(&self) -> usize {
        0
    }

    fn set_header_len(&self, _len: usize) -> std::io::Result<()> {
        Ok(())
    }

    fn set_little_endian(&self, _little_endian: bool) -> std::io::Result<()> {
        Ok(())
    }

    fn set_offloads(&self, _offloads: Offloads) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn no_feature_is_offered_that_is_said_not_to_be() {
    let able = Arc::new(Able);
    let client: Arc<dyn NetClient> = able.clone();
    let port = Port::new("able", Arc::downgrade(&client));
    let config = VirtioNetConfig {
        mq: true,
        rss: true,
        hash: true,
        failover: true,
        host_mtu: 1500,
        speed: Some(1),
        ..Default::default()
    };
    let context = EventLoop::new().unwrap();
    let nic = VirtioNet::<Arc<GuestMemoryMmap<()>>>::new(config, vec![port], vec![context]);
    let nic = nic.unwrap();
    let offered = NetF::from(nic.offered_features());
    for row in rows() {
        let Some(what) = row.proof.strip_prefix("not offered: ") else {
            continue;
        };
        match NetF::all().iter_names().find(|(name, _)| *name == what) {
            Some((_, feature)) => assert!(!offered.intersects(feature), "{what}"),
            None => assert!(what.contains("capabilities"), "{}: {what}", row.demand),
        }
    }
}
