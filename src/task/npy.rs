//! Reads NumPy's .npy format (versions 1.0 to 3.0, numpy.lib.format) from bytes that hostile code may have written:
//! what a header asks for is compared with what is there before anything is allocated, and nothing is unpickled. The
//! crate npyz (0.9) is not used because it allocates and recurses as the header says.

use regex::Regex;
use std::sync::LazyLock;

/// Header as NumPy writes it: keys in this order, one plain type. A structured type does not match, and is not an array
/// of numbers anyway.
static HEADER: LazyLock<Regex> = LazyLock::new(|| {
    let text = r"^\{'descr': '([<>|=])([A-Za-z])([0-9]*)', 'fortran_order': (True|False), 'shape': \(([0-9, ]*)\),? ?\}[ \n]*$";
    Regex::new(text).expect("a constant pattern")
});
/// NumPy's own limit for a header.
const MAX_HEADER: usize = 10_000;

/// An array as it lies in the file.
#[derive(Debug)]
pub struct Array<'a> {
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// NumPy's letter of the type: `f`, `i`, `u`, `b`, `U`, `S`, ...
    pub kind: char,
    /// Bytes of one item.
    size: usize,
    is_big_endian: bool,
    is_fortran: bool,
    data: &'a [u8],
}

impl<'a> Array<'a> {
    /// Parses the header. Error: not a .npy file, a type that is not one plain type, or another amount of data than its
    /// shape asks for; the text continues a sentence whose subject is the file.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let plain = || "holds an array that is not of one plain type; expected floats or integers".to_string();
        let broken = || "is no .npy file".to_string();
        let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or_else(broken)?;
        let (length, rest) = match rest {
            [1, _, a, b, rest @ ..] => (usize::from(u16::from_le_bytes([*a, *b])), rest),
            [2 | 3, _, a, b, c, d, rest @ ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, rest),
            _ => return Err(broken()),
        };
        let (header, data) = rest.split_at_checked(length).filter(|_| length <= MAX_HEADER).ok_or_else(broken)?;
        let header = std::str::from_utf8(header).map_err(|_| broken())?;
        let Some((_, [order, kind, size, fortran, shape])) = HEADER.captures(header).map(|c| c.extract()) else {
            return Err(plain());
        };
        let kind = kind.chars().next().ok_or_else(broken)?;
        if kind == 'O' {
            return Err("holds pickled objects; expected floats or integers".into());
        }
        let number = |text: &str| text.parse::<usize>().map_err(|_| broken());
        let size = match kind {
            'U' => number(size)?.checked_mul(4).ok_or_else(broken)?,
            _ => number(size)?,
        };
        if size == 0 {
            return Err(plain());
        }
        let shape: Vec<usize> =
            shape.split(',').map(str::trim).filter(|n| !n.is_empty()).map(number).collect::<Result<_, _>>()?;
        let asked = shape.iter().try_fold(size, |all, n| all.checked_mul(*n));
        if asked != Some(data.len()) {
            return Err(format!("holds {} bytes of data, its shape {shape:?} asks for another number", data.len()));
        }
        Ok(Self { shape, kind, size, is_big_endian: order == ">", is_fortran: fortran == "True", data })
    }

    /// Returns rows and columns: all dimensions but the first are columns. A single number is one row.
    pub fn rows_and_columns(&self) -> (usize, usize) {
        (
            self.shape.first().copied().unwrap_or(1),
            self.shape.iter().skip(1).fold(1, |all: usize, n| all.saturating_mul(*n)),
        )
    }

    /// True for floats, integers and booleans of the usual sizes.
    pub fn is_numeric(&self) -> bool {
        matches!((self.kind, self.size), ('f', 2 | 4 | 8) | ('i' | 'u', 1 | 2 | 4 | 8) | ('b', 1))
    }

    /// Returns the bytes of each item, row after row (the last dimension fastest).
    pub fn items(&self) -> Vec<&'a [u8]> {
        let items: Vec<&[u8]> = self.data.chunks_exact(self.size).collect();
        if !self.is_fortran {
            return items;
        }
        // In the file the first dimension is fastest.
        let count = items.len();
        let place = |index: usize| {
            let (mut rest, mut stride, mut at) = (index, count, 0);
            for &n in self.shape.iter().rev() {
                stride /= n;
                at += rest % n * stride;
                rest /= n;
            }
            at
        };
        (0..count).map(|index| items[place(index)]).collect()
    }

    /// Reads an item of a numeric array as a number.
    pub fn number(&self, item: &[u8]) -> f64 {
        let mut bytes = [0; 8];
        for (i, byte) in item.iter().take(8).enumerate() {
            bytes[if self.is_big_endian { item.len().min(8) - 1 - i } else { i }] = *byte;
        }
        let bits = u64::from_le_bytes(bytes);
        match (self.kind, item.len()) {
            ('f', 2) => half::f16::from_bits(bits as u16).to_f64(),
            ('f', 4) => f64::from(f32::from_bits(bits as u32)),
            ('f', _) => f64::from_bits(bits),
            ('i', 1) => f64::from(bits as i8),
            ('i', 2) => f64::from(bits as i16),
            ('i', 4) => f64::from(bits as i32),
            ('i', _) => bits as i64 as f64,
            _ => bits as f64,
        }
    }

    /// Reads an item as text: a string without its padding, a number as Rust writes it.
    pub fn text(&self, item: &[u8]) -> String {
        let code = |c: &[u8]| match self.is_big_endian {
            true => u32::from_be_bytes([c[0], c[1], c[2], c[3]]),
            false => u32::from_le_bytes([c[0], c[1], c[2], c[3]]),
        };
        match self.kind {
            _ if self.is_numeric() => self.number(item).to_string(),
            'U' => item.chunks_exact(4).map(code).take_while(|&c| c != 0).filter_map(char::from_u32).collect(),
            _ => String::from_utf8_lossy(item).trim_end_matches('\0').to_string(),
        }
    }
}
