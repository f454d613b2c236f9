//! How a module declares its section of the settings. `config` gathers the sections; data/config/default.toml has every
//! default, config/table.rs every range and meaning.

/// A section: a struct of keys, none of which may be missing or unknown.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(missing_docs)] // `config::SETTINGS` says what each key does
        pub struct $name { $(pub $field: $type),* }
    };
}

/// A setting that is one of several words.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($variant:ident),* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[allow(missing_docs)] // `config::SETTINGS` says what each does
        pub enum $name { $($variant),* }
    };
}

pub(crate) use {choice, section};
