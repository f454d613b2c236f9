//! Which program this is.

use std::sync::OnceLock;

/// The version in Cargo.toml.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that the compiler was told (ONESTEP_COMMIT=... cargo build); "unknown" without it.
pub const COMMIT: &str = match option_env!("ONESTEP_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// The first 16 hexadecimal digits of the blake3 hash of this program's file; "unknown" when it cannot be read.
pub fn program() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| {
        // The file that runs, also when another one has taken its place since.
        let bytes = std::fs::read("/proc/self/exe").or_else(|_| std::fs::read(std::env::current_exe()?));
        bytes.map_or_else(|_| "unknown".into(), |bytes| blake3::hash(&bytes).to_hex()[..16].to_string())
    })
}

/// Version, commit and program in a few words.
pub fn build() -> String {
    format!("{VERSION}, commit {COMMIT}, program {}", program())
}

/// What was typed, the program's name first.
pub fn command_line() -> Vec<String> {
    std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect()
}
