//! The table of what guests do names tests that are there.
#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// All Rust text below a folder.
fn text_below(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text_below(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

/// The code spans of a cell, with what stands right behind each.
fn spans(cell: &str) -> Vec<(&str, &str)> {
    let parts: Vec<&str> = cell.split('`').collect();
    parts
        .chunks(2)
        .zip(parts.iter().skip(2).step_by(2))
        .filter_map(|(pair, behind)| Some((*pair.get(1)?, *behind)))
        .collect()
}

#[test]
fn every_class_has_a_row_and_every_test_that_a_row_names_is_there() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(examples.join("tests/hostile/README.md")).unwrap();
    let mut texts: HashMap<String, String> = HashMap::new();
    let mut classes = Vec::new();
    for row in table.lines() {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let Some(class) = cells.get(1).and_then(|cell| cell.parse::<u32>().ok()) else {
            continue;
        };
        assert_eq!(cells.len(), 6, "class {class}");
        classes.push(class);
        let mut krate = None;
        let mut tests = 0;
        for (name, behind) in spans(cells[4]) {
            if behind.starts_with(':') {
                krate = Some(name);
                continue;
            }
            let krate = krate.expect("a crate comes before its tests");
            let text = texts.entry(krate.to_owned()).or_insert_with(|| {
                let folder = match krate {
                    "examples" => examples.to_owned(),
                    _ => examples.join("../crates").join(krate),
                };
                let mut text = String::new();
                for part in ["src", "tests"] {
                    text_below(&folder.join(part), &mut text);
                }
                text
            });
            let function = format!("fn {name}(");
            assert!(
                text.contains(&function),
                "class {class}: {krate} has no {name}"
            );
            tests += 1;
        }
        assert!(tests > 0, "class {class} has no test");
    }
    assert_eq!(classes, (1..=30).collect::<Vec<u32>>());
}
