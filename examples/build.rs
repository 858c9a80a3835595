//! Builds the embedded guest program (`payload/`) and hands its path to the crate as
//! `PAYLOAD_ELF`.
//!
//! The program is freestanding, so it gets a cargo of its own with flags of its own: whatever
//! flags, wrappers and profiles the outer build has are kept from it. It must run where there is
//! no SSE, and the host's target has nothing but: hence the flags, and a look at every instruction
//! in the end.

use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind};

/// The target whose `core` is there wherever the example can run.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What the outer build may say that the inner one must not hear.
const REMOVED: [&str; 3] = ["RUSTFLAGS", "RUSTDOCFLAGS", "RUSTC_LINKER"];
const REMOVED_PREFIXES: [&str; 5] = [
    "CARGO_BUILD_",
    "CARGO_TARGET_",
    "CARGO_PROFILE_",
    "CARGO_FEATURE_",
    "CARGO_CFG_",
];

fn main() -> ExitCode {
    match build() {
        Ok(elf) => {
            println!("cargo::rustc-env=PAYLOAD_ELF={}", elf.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("the embedded guest program cannot be built: {error}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<PathBuf, Box<dyn Error>> {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let package = here.join("payload");
    let driver = here.join("../crates/virtio-guest");
    for path in [
        here.join("build.rs"),
        here.join("../Cargo.toml"),
        package.join("Cargo.toml"),
        package.join("Cargo.lock"),
        package.join("link.ld"),
        package.join("src"),
        driver.join("Cargo.toml"),
        driver.join("src"),
    ] {
        println!("cargo::rerun-if-changed={}", path.display());
    }

    let target_dir = PathBuf::from(variable("OUT_DIR")?).join("payload");
    let mut cargo = Command::new(variable("CARGO")?);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if REMOVED.contains(&text.as_ref())
            || REMOVED_PREFIXES
                .iter()
                .any(|prefix| text.starts_with(prefix))
        {
            cargo.env_remove(&name);
        }
    }
    let status = cargo
        .current_dir(&package)
        // Empty is none, even if a configuration file names one.
        .env("RUSTC_WRAPPER", "")
        .env("RUSTC_WORKSPACE_WRAPPER", "")
        // Goes before every other place that flags come from. With a target given, build scripts
        // and macros do not get them.
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&package.join("link.ld"))?)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--release",
            "--target",
            TARGET,
        ])
        .args(["--bin", "guest", "--features", "freestanding"])
        .arg("--target-dir")
        .arg(&target_dir)
        .status()?;
    if !status.success() {
        return Err(format!("cargo ended with {status}").into());
    }

    let elf = target_dir.join(TARGET).join("release/guest");
    check_instructions(&fs::read(&elf)?)?;
    Ok(elf)
}

/// The compiler's flags, as `CARGO_ENCODED_RUSTFLAGS` wants them.
fn flags(linker_script: &Path) -> Result<String, Box<dyn Error>> {
    let script = linker_script.to_str().ok_or("the path is not UTF-8")?;
    let script = format!("link-arg=-Wl,-T,{script}");
    let options = [
        "relocation-model=static",
        "link-arg=-nostartfiles",
        "link-arg=-nostdlib",
        "link-arg=-static",
        "link-arg=-no-pie",
        "link-arg=-Wl,--build-id=none",
        &script,
        // Together with link-time optimization, which has all of `core` compiled anew: no SSE.
        "llvm-args=-force-attribute=noimplicitfloat",
        "no-vectorize-loops",
        "no-vectorize-slp",
    ];
    Ok(options.map(|option| format!("-C{option}")).join("\x1f"))
}

/// Looks at every instruction for one that needs more than a plain 64-bit processor has, or that
/// KVM's emulator lacks.
fn check_instructions(elf: &[u8]) -> Result<(), Box<dyn Error>> {
    let file = object::File::parse(elf)?;
    let mut seen = 0;
    for section in file
        .sections()
        .filter(|section| section.kind() == SectionKind::Text)
    {
        let code = section.data()?;
        for instruction in Decoder::with_ip(64, code, section.address(), DecoderOptions::NONE) {
            seen += 1;
            let plain = instruction
                .cpuid_features()
                .iter()
                .all(|feature| PLAIN.contains(feature));
            if plain && !MISSING.contains(&instruction.code()) {
                continue;
            }
            let function = file
                .symbols()
                .filter(|symbol| symbol.address() <= instruction.ip())
                .max_by_key(|symbol| symbol.address());
            let function = function
                .and_then(|symbol| symbol.name().ok())
                .unwrap_or("?");
            return Err(format!(
                "{:?} at {:#x} in {function} does not run everywhere",
                instruction.code(),
                instruction.ip()
            )
            .into());
        }
    }
    if seen == 0 {
        return Err("there is no code in it".into());
    }
    Ok(())
}

/// What every 64-bit processor has, without the floating point and vector units.
const PLAIN: [CpuidFeature; 12] = [
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CMOV,
    CpuidFeature::CPUID,
    CpuidFeature::CX8,
    CpuidFeature::MSR,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::PAUSE,
];

/// What the emulator cannot do in 64-bit mode, or what decodes to nothing.
const MISSING: [Code; 3] = [Code::INVALID, Code::Iretq, Code::Iretd];

/// A variable that cargo sets for build scripts.
fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("{name} is not set"))
}
