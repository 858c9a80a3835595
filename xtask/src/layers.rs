//! `cargo xtask layers`: no crate depends on one of its own level or above, none but the examples
//! names KVM, and each of the crates that must agree on types is there once.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The crate map, lowest level first. The packages of the last level compose and may know everybody.
const LEVELS: [&[&str]; 6] = [
    &["keyval", "qom", "iothread", "virtqueue", "virtio-guest"],
    &["qdev", "net-client"],
    &["virtio-bus", "vm-pci", "net-tap"],
    &["virtio-net", "virtio-pci"],
    &["virtio-pci-proxies"],
    &["examples", "benches", "xtask"],
];

/// Only the examples know that KVM exists.
const KVM: [&str; 2] = ["kvm-ioctls", "kvm-bindings"];

/// Types of these cross crate borders, so two versions would not fit together.
const ONE_COPY: [&str; 6] =
    ["vm-memory", "virtio-queue", "virtio-spec", "vmm-sys-util", "event-manager", "vm-device"];

/// Checks the map against what cargo resolves.
///
/// # Errors
/// One line for each arrow that points the wrong way.
pub(crate) fn check() -> Result<()> {
    let level: BTreeMap<&str, usize> =
        LEVELS.iter().enumerate().flat_map(|(n, names)| names.iter().map(move |c| (*c, n))).collect();
    let mut wrong = Vec::new();
    let mut found = BTreeSet::new();
    for (package, dependency) in direct_dependencies()? {
        found.insert(package.clone());
        let Some(&own) = level.get(package.as_str()) else {
            wrong.push(format!("{package} has no level in the crate map"));
            continue;
        };
        if let Some(&other) = level.get(dependency.as_str())
            && other >= own
        {
            wrong.push(format!("{package} (level {own}) depends on {dependency} (level {other})"));
        }
        if KVM.contains(&dependency.as_str()) && package != "examples" {
            wrong.push(format!("{package} names KVM: it depends on {dependency}"));
        }
    }
    for missing in level.keys().filter(|name| **name != "xtask" && !found.contains(**name)) {
        // A crate without any dependency has no arrow to check.
        if !std::path::Path::new("crates").join(missing).exists() && LEVELS[5].iter().all(|c| c != missing) {
            wrong.push(format!("{missing} is in the crate map but not in the workspace"));
        }
    }
    wrong.extend(copies()?);
    ensure!(wrong.is_empty(), "the crate map does not hold:\n  {}", wrong.join("\n  "));
    println!("the crate map holds: {} packages, no arrow upwards", found.len());
    Ok(())
}

/// (package, dependency) for each normal dependency of each workspace member.
fn direct_dependencies() -> Result<Vec<(String, String)>> {
    let tree = cargo_tree(&["--depth", "1", "--edges", "normal,build", "--prefix", "depth", "--format", " {p}"])?;
    let mut arrows = Vec::new();
    let mut package = String::new();
    for line in tree.lines().filter(|line| !line.trim().is_empty()) {
        let (depth, name) = line.split_once(' ').with_context(|| format!("odd line of cargo tree: {line}"))?;
        let name = name.split_whitespace().next().unwrap_or_default().to_owned();
        match depth {
            "0" => package = name,
            "1" => arrows.push((package.clone(), name)),
            _ => bail!("odd depth in cargo tree: {line}"),
        }
    }
    Ok(arrows)
}

/// A line for each crate of [`ONE_COPY`] that is resolved in more than one version.
fn copies() -> Result<Vec<String>> {
    let tree = cargo_tree(&["--edges", "normal,build,dev", "--prefix", "none", "--format", "{p}"])?;
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

fn cargo_tree(arguments: &[&str]) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--workspace", "--locked"])
        .args(arguments)
        .output()
        .context("cannot run cargo tree")?;
    ensure!(output.status.success(), "cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
