//! Kernel modules: finds the wanted ones with all they depend on, and writes the `modules.dep`
//! that `modprobe` reads.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::assets::{read, run};
use super::cpio::Tree;

/// Puts the modules named in `wanted`, and those they depend on, into `tree`.
///
/// `directory` is the unpacked `lib/modules/RELEASE`. A module may be compressed with xz.
pub(crate) fn install(
    tree: &mut Tree,
    directory: &Path,
    release: &str,
    wanted: &[&str],
) -> Result<()> {
    let mut available = BTreeMap::new();
    collect(&directory.join("kernel"), &mut available)?;
    let mut lines = BTreeMap::new();
    for name in wanted {
        add(name, &available, tree, release, &mut lines)?;
    }
    let root = format!("lib/modules/{release}");
    let index: String = lines.into_values().collect();
    tree.file(&format!("{root}/modules.dep"), index);
    for empty in ["modules.alias", "modules.symbols", "modules.builtin"] {
        tree.file(&format!("{root}/{empty}"), "");
    }
    Ok(())
}

/// Adds one module after those it depends on, and returns the file names of all, itself first.
fn add(
    name: &str,
    available: &BTreeMap<String, PathBuf>,
    tree: &mut Tree,
    release: &str,
    lines: &mut BTreeMap<String, String>,
) -> Result<Vec<String>> {
    let path = available
        .get(&canonical(name))
        .with_context(|| format!("the kernel package has no module {name}"))?;
    let data = if path.extension().is_some_and(|e| e == "xz") {
        run(Command::new("xz").arg("-dc").arg(path))?.stdout
    } else {
        read(path)?
    };
    let mut files = vec![format!("{}.ko", canonical(name))];
    for dependency in depends(&data) {
        for file in add(&dependency, available, tree, release, lines)? {
            // modprobe loads from the last to the first, so what is needed by more goes further back.
            files.retain(|other| *other != file);
            files.push(file);
        }
    }
    if let Some((own, others)) = files.split_first() {
        lines.insert(own.clone(), format!("{own}: {}\n", others.join(" ")));
        tree.file(&format!("lib/modules/{release}/{own}"), data);
    }
    Ok(files)
}

/// The modules that a module says it depends on, in its `.modinfo` section.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|w| w == KEY) else {
        return Vec::new();
    };
    let value = module.get(at + KEY.len()..).unwrap_or_default();
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn collect(directory: &Path, into: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in
        fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?
    {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, into)?;
            continue;
        }
        let Some(file) = path.file_name().and_then(|n| n.to_str()) else {
            continue;
        };
        let Some((name, suffix)) = file.split_once(".ko") else {
            continue;
        };
        ensure!(
            matches!(suffix, "" | ".xz"),
            "{} is compressed in a way that is not known here",
            path.display()
        );
        into.insert(canonical(name), path);
    }
    Ok(())
}

/// The kernel takes `-` and `_` in a module's name for the same.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dependencies_of_a_module_are_read_from_its_modinfo() {
        let cases: [(&[u8], &[&str]); 3] = [
            (
                b"x\0license=GPL\0depends=virtio,virtio_ring\0retpoline=Y\0",
                &["virtio", "virtio_ring"],
            ),
            (b"\0depends=\0name=virtio\0", &[]),
            (b"no such key", &[]),
        ];
        for (module, expected) in cases {
            assert_eq!(
                depends(module),
                expected,
                "{}",
                String::from_utf8_lossy(module)
            );
        }
    }
}
