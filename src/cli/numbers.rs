//! Parsers for the numbers that options take. Their errors say what was expected; clap puts the option in front.

use crate::sandbox::{LEAST_MEMORY, MOST_BYTES};

/// Parses a whole number from `LOW` to `HIGH`.
pub fn whole<const LOW: u64, const HIGH: u64>(text: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|n| (LOW..=HIGH).contains(n));
    number.ok_or_else(|| format!("expected a whole number from {LOW} to {HIGH}"))
}

/// Parses as [`whole`] does, to a `usize`: a count of something in memory.
pub fn count<const LOW: u64, const HIGH: u64>(text: &str) -> Result<usize, String> {
    whole::<LOW, HIGH>(text).map(|n| n as usize)
}

/// Parses seconds above 0, at most `MOST`.
pub fn seconds<const MOST: u64>(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|&s: &f64| s > 0.0 && s <= MOST as f64);
    number.ok_or_else(|| format!("expected seconds above 0, at most {MOST}, for example 480"))
}

/// Parses a number of bytes, from 1 to `MOST_BYTES`, with an optional unit, decimal (GB) or binary (GiB).
pub fn bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = (text[..split].trim(), text[split..].to_ascii_lowercase());
    let units = [
        ("", 1.0),
        ("b", 1.0),
        ("kb", 1e3),
        ("mb", 1e6),
        ("gb", 1e9),
        ("tb", 1e12),
        ("kib", 1024.0),
        ("mib", 1048576.0),
        ("gib", 1073741824.0),
        ("tib", 1099511627776.0),
    ];
    let factor = units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| factor);
    let number = number.parse::<f64>().ok().zip(factor).map(|(n, factor)| n * factor);
    let valid = number.filter(|bytes| (1.0..=MOST_BYTES as f64).contains(bytes));
    valid.map(|bytes| bytes as u64).ok_or_else(|| {
        "expected a number of bytes with a unit, for example 141GB or 80GiB, at least 1 and at most 1024TiB".to_string()
    })
}

/// Parses as [`bytes`] does, for the memory of a script: at least `LEAST_MEMORY`.
pub fn script_memory(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        enough @ LEAST_MEMORY.. => Ok(enough),
        _ => Err(format!("expected at least {}MiB: Python alone holds most of that", LEAST_MEMORY >> 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert_eq!((whole::<1, 9>("9"), count::<0, 9>("0"), seconds::<9>("0.5")), (Ok(9), Ok(0), Ok(0.5)));
        for text in ["", "x", "-1", "10", "1.5", "1e0", "nan", "18446744073709551616"] {
            assert!(whole::<0, 9>(text).is_err_and(|e| e == "expected a whole number from 0 to 9"), "{text}");
        }
        for text in ["", "x", "-1", "0", "9.1", "nan", "inf", "1e300"] {
            assert!(seconds::<9>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_have_units_and_an_end() {
        for (text, expected) in [("1", 1), ("2kB", 2000), ("1.5 GiB", 3 << 29), ("1024TiB", 1 << 50)] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "0", "0.5", "-1GB", "much", "1 gigabyte", "nan", "inf", "1025TiB", "18446744073709551615"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
