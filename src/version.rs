//! Identifies this program: version, commit, hash of its file, command line.

use std::process::Command;
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

/// The version in Cargo.toml.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit given to the compiler (ONESTEP_COMMIT=... cargo build). Else that of the folder the program was built in,
/// marked when its sources have changes; "unknown" when there is none or it is younger than the program.
pub fn commit() -> &'static str {
    static COMMIT: OnceLock<String> = OnceLock::new();
    COMMIT.get_or_init(|| match option_env!("ONESTEP_COMMIT") {
        Some(commit) => commit.to_string(),
        None => commit_of_sources().unwrap_or_else(|| "unknown".into()),
    })
}

fn commit_of_sources() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let head = git(&["log", "-1", "--format=%H %ct"])?;
    let (commit, committed) = head.split_once(' ')?;
    let built = std::fs::metadata(std::env::current_exe().ok()?).ok()?.modified().ok()?;
    let built = built.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let changed = git(&["status", "--porcelain", "src", "kernels"]).is_none_or(|changes| !changes.is_empty());
    (committed.parse::<u64>().ok()? <= built).then(|| format!("{commit}{}", if changed { " with changes" } else { "" }))
}

/// The first 16 hexadecimal digits of the blake3 hash of this program's file; "unknown" when it cannot be read.
pub fn program() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| {
        // The file that runs, even if another has replaced it since.
        let bytes = std::fs::read("/proc/self/exe").or_else(|_| std::fs::read(std::env::current_exe()?));
        bytes.map_or_else(|_| "unknown".into(), |bytes| blake3::hash(&bytes).to_hex()[..16].to_string())
    })
}

/// Version and hash of this program in a few words.
pub fn build() -> String {
    format!("{VERSION}, program {}", program())
}

/// The command line, the program's name first.
pub fn command_line() -> Vec<String> {
    std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect()
}
