//! A file tree in memory, written out as a `newc` cpio archive (what the kernel unpacks as its
//! initramfs) or as a directory.
//!
//! Several archives may be concatenated; the kernel unpacks them one over the other.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Files, directories and links by path, without a leading slash.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tree {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
enum Entry {
    Directory,
    File {
        data: Vec<u8>,
        executable: bool,
    },
    Link {
        target: String,
    },
    /// A character device; only in archives, since making one takes privilege.
    Device {
        major: u32,
        minor: u32,
    },
}

impl Tree {
    /// Adds a directory with its parents.
    pub(crate) fn directory(&mut self, path: &str) {
        self.parents(path);
        self.entries
            .entry(path.to_owned())
            .or_insert(Entry::Directory);
    }

    /// Adds or replaces a file.
    pub(crate) fn file(&mut self, path: &str, data: impl Into<Vec<u8>>) {
        self.insert(
            path,
            Entry::File {
                data: data.into(),
                executable: false,
            },
        );
    }

    /// Adds or replaces a file that can be executed.
    pub(crate) fn program(&mut self, path: &str, data: impl Into<Vec<u8>>) {
        self.insert(
            path,
            Entry::File {
                data: data.into(),
                executable: true,
            },
        );
    }

    /// Adds or replaces a symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.insert(
            path,
            Entry::Link {
                target: target.to_owned(),
            },
        );
    }

    /// Adds a character device.
    pub(crate) fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.insert(path, Entry::Device { major, minor });
    }

    /// Whether anything is at `path`.
    pub(crate) fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    /// The tree as an archive, padded so that another may follow it.
    pub(crate) fn to_cpio(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut inode = 0;
        for (path, entry) in &self.entries {
            inode += 1;
            let (mode, data, device): (u32, &[u8], (u32, u32)) = match entry {
                Entry::Directory => (0o040_755, &[], (0, 0)),
                Entry::File {
                    data,
                    executable: false,
                } => (0o100_644, data, (0, 0)),
                Entry::File {
                    data,
                    executable: true,
                } => (0o100_755, data, (0, 0)),
                Entry::Link { target } => (0o120_777, target.as_bytes(), (0, 0)),
                Entry::Device { major, minor } => (0o020_600, &[], (*major, *minor)),
            };
            record(&mut out, inode, path, mode, data, device)?;
        }
        record(&mut out, 0, "TRAILER!!!", 0, &[], (0, 0))?;
        pad(&mut out, 512);
        Ok(out)
    }

    /// Writes the tree below the directory `root`; devices are left out.
    pub(crate) fn to_directory(&self, root: &Path) -> Result<()> {
        fs::create_dir_all(root).with_context(|| format!("creating {}", root.display()))?;
        for (path, entry) in &self.entries {
            let at = root.join(path);
            let done = match entry {
                Entry::Directory => fs::create_dir_all(&at),
                Entry::File { data, executable } => {
                    let mode = if *executable { 0o755 } else { 0o644 };
                    fs::write(&at, data)
                        .and_then(|()| fs::set_permissions(&at, fs::Permissions::from_mode(mode)))
                }
                Entry::Link { target } => symlink(target, &at),
                Entry::Device { .. } => Ok(()),
            };
            done.with_context(|| format!("writing {}", at.display()))?;
        }
        Ok(())
    }

    fn insert(&mut self, path: &str, entry: Entry) {
        self.parents(path);
        self.entries.insert(path.to_owned(), entry);
    }

    fn parents(&mut self, path: &str) {
        for (end, _) in path.match_indices('/') {
            let parent = path.get(..end).unwrap_or_default();
            self.entries
                .entry(parent.to_owned())
                .or_insert(Entry::Directory);
        }
    }
}

/// Appends one record: the header of 13 hexadecimal fields, the name, the data, each padded to 4.
fn record(
    out: &mut Vec<u8>,
    inode: u32,
    path: &str,
    mode: u32,
    data: &[u8],
    device: (u32, u32),
) -> Result<()> {
    let Ok(size) = u32::try_from(data.len()) else {
        bail!("{path} is too large for a cpio archive");
    };
    let name_size = u32::try_from(path.len() + 1).context("path too long")?;
    let links = 1;
    let fields = [
        inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, /* check */ 0,
    ];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out, 4);
    out.extend_from_slice(data);
    pad(out, 4);
    Ok(())
}

fn pad(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_names_every_entry_after_its_parents_and_ends_with_the_trailer() {
        let mut tree = Tree::default();
        tree.program("a/b/run", "#!/bin/sh\n");
        tree.link("a/x", "b/run");
        let archive = tree.to_cpio().unwrap();
        assert_eq!(archive.len() % 512, 0);
        let at = |name: &str| {
            let wanted = [name.as_bytes(), &[0]].concat();
            archive
                .windows(wanted.len())
                .position(|w| w == wanted)
                .unwrap()
        };
        assert!(at("a") < at("a/b"));
        assert!(at("a/b") < at("a/b/run"));
        assert!(at("a/b/run") < at("a/x"));
        assert!(at("a/x") < at("TRAILER!!!"));
    }

    #[test]
    fn a_record_starts_on_a_multiple_of_four_and_states_mode_and_sizes() {
        let mut tree = Tree::default();
        tree.file("odd", "12345");
        let archive = tree.to_cpio().unwrap();
        assert_eq!(&archive[..6], b"070701");
        assert_eq!(&archive[14..22], b"000081a4");
        assert_eq!(&archive[54..62], b"00000005");
        assert_eq!(&archive[94..102], b"00000004");
        // 110 bytes of header, 4 of name, padded to 116; 5 of data, padded to 124.
        assert_eq!(&archive[116..121], b"12345");
        assert_eq!(&archive[124..130], b"070701");
    }
}
