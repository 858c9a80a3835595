//! `cargo xtask layers`: no crate depends on one of its own level or above, none but the examples
//! names KVM, and each of the crates that must agree on types is there once.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The crate map, lowest level first. The packages of the last level compose and may know everybody.
const LEVELS: [&[&str]; 6] = [
    &[
        "keyval",
        "qom",
        "iothread",
        "virtqueue",
        "virtio-guest",
        "vmstate",
    ],
    &["qdev", "net-client"],
    &["virtio-bus", "vm-pci", "net-tap"],
    &["virtio-net", "virtio-pci", "vhost-user-transport"],
    &["virtio-pci-proxies"],
    &["examples", "benches", "xtask"],
];

/// Only the examples know that KVM exists.
const KVM: [&str; 2] = ["kvm-ioctls", "kvm-bindings"];

/// Types of these cross crate borders, so two versions would not fit together.
const ONE_COPY: [&str; 6] = [
    "vm-memory",
    "virtio-queue",
    "virtio-spec",
    "vmm-sys-util",
    "event-manager",
    "vm-device",
];

/// Checks the map against what cargo resolves.
///
/// # Errors
/// One line for each arrow that points the wrong way.
pub(crate) fn check() -> Result<()> {
    let level: BTreeMap<&str, usize> = LEVELS
        .iter()
        .enumerate()
        .flat_map(|(n, names)| names.iter().map(move |c| (*c, n)))
        .collect();
    let mut wrong = Vec::new();
    let packages = direct_dependencies()?;
    for (package, dependencies) in &packages {
        let Some(&own) = level.get(package.as_str()) else {
            wrong.push(format!("{package} has no level in the crate map"));
            continue;
        };
        for dependency in dependencies {
            if let Some(&other) = level.get(dependency.as_str())
                && other >= own
            {
                wrong.push(format!(
                    "{package} (level {own}) depends on {dependency} (level {other})"
                ));
            }
            if KVM.contains(&dependency.as_str()) && package != "examples" {
                wrong.push(format!("{package} names KVM: it depends on {dependency}"));
            }
        }
    }
    for missing in level.keys().filter(|name| !packages.contains_key(**name)) {
        wrong.push(format!(
            "{missing} is in the crate map but not in the workspace"
        ));
    }
    wrong.extend(copies()?);
    ensure!(
        wrong.is_empty(),
        "the crate map does not hold:\n  {}",
        wrong.join("\n  ")
    );
    println!(
        "the crate map holds: {} packages, no arrow upwards",
        packages.len()
    );
    Ok(())
}

/// Each workspace member with the names of its normal and build dependencies. Tests may look
/// upwards, so development dependencies do not count.
fn direct_dependencies() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let metadata: Metadata = serde_json::from_str(&cargo(&[
        "metadata",
        "--locked",
        "--no-deps",
        "--format-version=1",
    ])?)
    .context("cannot read what cargo metadata printed")?;
    let names = |package: Package| {
        let of_build = package
            .dependencies
            .into_iter()
            .filter(|d| d.kind.as_deref() != Some("dev"));
        (package.name, of_build.map(|d| d.name).collect())
    };
    Ok(metadata.packages.into_iter().map(names).collect())
}

/// A line for each crate of [`ONE_COPY`] that is resolved in more than one version.
fn copies() -> Result<Vec<String>> {
    let tree = cargo(&[
        "tree",
        "--workspace",
        "--locked",
        "--edges",
        "normal,build,dev",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ])?;
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in tree.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(version)) = (words.next(), words.next())
            && ONE_COPY.contains(&name)
        {
            versions.entry(name).or_default().insert(version);
        }
    }
    Ok(versions
        .into_iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(name, versions)| format!("{name} is there in several versions: {versions:?}"))
        .collect())
}

/// The part of `cargo metadata` that is looked at.
#[derive(serde::Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(serde::Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(serde::Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or none for a normal one.
    kind: Option<String>,
}

fn cargo(arguments: &[&str]) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .output()
        .context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "cargo {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
