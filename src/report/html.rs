//! Formats text and numbers for the page. Everything that comes from a run passes through `escape`: agents may write
//! hostile text.

/// Escapes text for use as HTML text or attribute value. Characters that are invisible or reorder text become their
/// codes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            '\n' | '\t' => out.push(c),
            '\r' => out += "\\r",
            '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
                out += &c.escape_unicode().to_string();
            }
            c if c.is_control() => out += &c.escape_unicode().to_string(),
            c => out.push(c),
        }
    }
    out
}

/// Formats a number with up to four significant digits (digits before the point are all kept), in scientific notation
/// with three below 1e-4 and from 1e6 on; an en dash when it is not finite.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    let size = value.abs();
    let text = if size != 0.0 && !(1e-4..1e6).contains(&size) {
        format!("{value:.2e}")
    } else {
        let digits = if size < 1e-4 { 0 } else { (3.0 - size.log10().floor()).clamp(0.0, 7.0) as usize };
        let text = format!("{value:.digits$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
    };
    text.replace('-', "\u{2212}")
}

/// Formats a number with a fixed count of decimals, for columns; an en dash when it is not finite.
pub fn fixed(value: f64, decimals: usize) -> String {
    if value.is_finite() { format!("{value:.decimals$}").replace('-', "\u{2212}") } else { "–".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_text() {
        assert_eq!(escape("<b a='1' c=\"2\">&amp;"), "&lt;b a=&#39;1&#39; c=&quot;2&quot;&gt;&amp;amp;");
        assert_eq!(escape("a\u{0}b\u{1b}[2J\u{202e}\n\tß日"), "a\\u{0}b\\u{1b}[2J\\u{202e}\n\tß日");
    }

    #[test]
    fn numbers_are_short() {
        let cases = [(0.0, "0"), (0.5, "0.5"), (-0.123_456, "−0.1235"), (12_345.678, "12346"), (2.5e-7, "2.50e−7")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        assert_eq!(
            (number(f64::NAN), fixed(0.5, 3), fixed(f64::INFINITY, 1)),
            ("–".into(), "0.500".into(), "–".into())
        );
    }
}
