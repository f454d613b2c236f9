//! Functions and tags that Jinja templates have in transformers but not in minijinja: Python's JSON, dates, generation
//! tags.

use minijinja::ErrorKind;
use minijinja::value::{Kwargs, Value};
use regex::{Captures, Regex};
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};
use std::io::{self, Write};

/// Replaces `{% generation %}` and `{% endgeneration %}`, with which templates mark replies for transformers, by a
/// block that is always rendered. It strips white space where the tags do.
pub fn without_generation_tags(source: &str) -> String {
    let Ok(tags) = Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}") else { return source.to_string() };
    let block =
        |c: &Captures| format!("{{%{} {} {}%}}", &c[1], if c.get(2).is_some() { "endif" } else { "if true" }, &c[3]);
    tags.replace_all(source, block).into_owned()
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`, which transformers offers templates under this
/// name.
pub fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let indent = indent.map_or_else(|| options.get::<Option<Value>>("indent"), |indent| Ok(Some(indent)))?;
    let indent = indent.filter(|i| !i.is_none()).map(usize::try_from).transpose()?;
    options.assert_all_used()?;
    let text = json(value, indent);
    text.map(Value::from).map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, format!("tojson: {e}")))
}

/// JSON of a value as Python writes it: on one line with spaces, or indented by `indent` spaces per level.
pub fn json(value: &impl Serialize, indent: Option<usize>) -> std::result::Result<String, serde_json::Error> {
    let mut text = Vec::new();
    match indent.map(|n| " ".repeat(n)) {
        Some(indent) => {
            let lines = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut text, lines))?;
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut text, Spaced(CompactFormatter)))?,
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// One-line JSON as Python writes it: a space after `,` and `:`.
struct Spaced(CompactFormatter);

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(writer, first)?;
        if first { Ok(()) } else { writer.write_all(b" ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)?;
        if first { Ok(()) } else { writer.write_all(b" ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)?;
        writer.write_all(b" ")
    }
}

/// An error of minijinja with its causes, in one line.
pub fn chain(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// `strftime_now` of transformers on one fixed day, Llama 3's fallback: a prompt must not depend on the day of the run.
pub fn strftime(format: &str) -> String {
    let fields = [
        ("%d", "26"),
        ("%m", "07"),
        ("%b", "Jul"),
        ("%B", "July"),
        ("%Y", "2024"),
        ("%y", "24"),
        ("%a", "Fri"),
        ("%A", "Friday"),
        ("%H", "00"),
        ("%M", "00"),
        ("%S", "00"),
    ];
    fields.iter().fold(format.to_string(), |text, (field, value)| text.replace(field, value))
}
