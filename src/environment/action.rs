//! The agent's replies: parses a text into a typed action, and renders an action as its canonical text. Parsing is
//! lenient in white space, strict in names and keys. Whether a named script exists is left to the workspace.

use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// The actions of the `direct` set (no helper model).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// List the files of a folder.
    ListFiles {
        /// Folder inside the workspace; `.` is the workspace.
        dir_path: String,
    },
    /// Copy one file to another name.
    CopyFile {
        /// File to copy.
        source: String,
        /// The new name.
        destination: String,
    },
    /// Show lines of a file.
    InspectScriptLines {
        /// The file.
        script_name: String,
        /// First line shown, from 1.
        start_line_number: u64,
        /// Last line shown.
        end_line_number: u64,
    },
    /// Run a script.
    ExecuteScript {
        /// The script.
        script_name: String,
    },
    /// Change a script by a search/replace patch (see `patch`).
    EditScript {
        /// The script.
        script_name: String,
        /// A whole passage, or the beginning of exactly one line.
        search: String,
        /// The replacement.
        replace: String,
    },
    /// End the episode.
    FinalAnswer {
        /// Free text.
        final_answer: String,
    },
}

/// Set of fields that a reply has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplyFormat {
    /// All six fields of the paper.
    Thought,
    /// The paper's ablation: Action and Action Input only.
    NoThought,
}

const FIELDS: [&str; 6] = ["Reflection", "Research Plan and Status", "Fact Check", "Thought", "Action", "Action Input"];

impl ReplyFormat {
    /// The names of the fields, in order.
    pub fn fields(self) -> &'static [&'static str] {
        match self {
            ReplyFormat::Thought => &FIELDS,
            ReplyFormat::NoThought => &FIELDS[4..],
        }
    }
}

/// The actions and their arguments, in the order of the canonical text.
pub const ACTIONS: [(&str, &[&str]); 6] = [
    ("List Files", &["dir_path"]),
    ("Copy File", &["source", "destination"]),
    ("Inspect Script Lines", &["script_name", "start_line_number", "end_line_number"]),
    ("Execute Script", &["script_name"]),
    ("Edit Script", &["script_name", "search", "replace"]),
    ("Final Answer", &["final_answer"]),
];

/// Reason why a reply is not an action. The text is shown to the agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A field is missing.
    #[error("the field \"{0}:\" is missing; it must begin a line of its own")]
    MissingField(&'static str),
    /// A field comes before one that should precede it.
    #[error("the field \"{0}:\" is out of order; the order is {order}", order = .1.fields().join(", "))]
    WrongOrder(&'static str, ReplyFormat),
    /// A field occurs twice.
    #[error("the field \"{0}:\" is there twice")]
    RepeatedField(&'static str),
    /// There is text before the first field.
    #[error("there is text before the field \"{0}:\"")]
    LeadingText(&'static str),
    /// No action has this name.
    #[error("there is no action \"{0}\"; the actions are {names}", names = names())]
    UnknownAction(String),
    /// The input is not JSON.
    #[error("the Action Input is not valid JSON: {0}")]
    NotJson(String),
    /// The input is JSON, but not an object.
    #[error("the Action Input must be a JSON object, for example {example}", example = EXAMPLE)]
    NotAnObject,
    /// Something follows the JSON object.
    #[error("there is text after the Action Input: {0}")]
    TrailingText(String),
    /// The action has no argument of this name.
    #[error("\"{action}\" has no argument \"{key}\"; it takes {}", arguments(.action))]
    UnknownKey {
        /// The action's name.
        action: &'static str,
        /// The key.
        key: String,
    },
    /// A key occurs twice.
    #[error("the argument \"{0}\" is there twice")]
    RepeatedKey(String),
    /// An argument is missing.
    #[error("\"{action}\" needs the argument \"{key}\"; it takes {}", arguments(.action))]
    MissingKey {
        /// The action's name.
        action: &'static str,
        /// The key.
        key: &'static str,
    },
    /// An argument has the wrong type.
    #[error("the argument \"{key}\" must be {expected}")]
    WrongType {
        /// The key.
        key: &'static str,
        /// The type it must have.
        expected: &'static str,
    },
}

const EXAMPLE: &str = r#"{"script_name": "train.py"}"#;

fn names() -> String {
    ACTIONS.map(|(name, _)| name).join(", ")
}

fn arguments(action: &str) -> String {
    let keys = ACTIONS.iter().find(|(name, _)| *name == action).map_or(&[][..], |(_, keys)| keys);
    keys.iter().map(|k| format!("\"{k}\"")).collect::<Vec<_>>().join(", ")
}

/// Parses a reply.
pub fn parse(reply: &str, format: ReplyFormat) -> Result<Action, ParseError> {
    let [name, input] = split(reply, format)?;
    let Some(&(action, keys)) = ACTIONS.iter().find(|(known, _)| *known == name) else {
        return Err(ParseError::UnknownAction(name.chars().take(80).collect()));
    };
    let arguments = Arguments { action, pairs: read_object(input)? };
    for (i, (key, _)) in arguments.pairs.iter().enumerate() {
        if !keys.contains(&key.as_str()) {
            return Err(ParseError::UnknownKey { action, key: key.clone() });
        }
        if arguments.pairs[..i].iter().any(|(earlier, _)| earlier == key) {
            return Err(ParseError::RepeatedKey(key.clone()));
        }
    }
    Ok(match action {
        "List Files" => Action::ListFiles { dir_path: arguments.text("dir_path")? },
        "Copy File" => {
            Action::CopyFile { source: arguments.text("source")?, destination: arguments.text("destination")? }
        }
        "Inspect Script Lines" => Action::InspectScriptLines {
            script_name: arguments.text("script_name")?,
            start_line_number: arguments.number("start_line_number")?,
            end_line_number: arguments.number("end_line_number")?,
        },
        "Execute Script" => Action::ExecuteScript { script_name: arguments.text("script_name")? },
        "Edit Script" => Action::EditScript {
            script_name: arguments.text("script_name")?,
            search: arguments.text("search")?,
            replace: arguments.text("replace")?,
        },
        _ => Action::FinalAnswer { final_answer: arguments.text("final_answer")? },
    })
}

/// Returns the action's name and the text of its input. Error: a field of the format is missing, repeated or out of
/// order, or there is text before the first field.
fn split(reply: &str, format: ReplyFormat) -> Result<[&str; 2], ParseError> {
    let fields = format.fields();
    let mut found: Vec<(&'static str, usize, usize)> = Vec::new(); // field, start of its line, start of its text
    let mut line_start = 0;
    for line in reply.split_inclusive('\n') {
        let indent = line.len() - line.trim_start().len();
        let header =
            fields.iter().copied().find(|f| line[indent..].strip_prefix(f).is_some_and(|r| r.starts_with(':')));
        if let Some(field) = header {
            if found.iter().any(|&(seen, ..)| seen == field) {
                return Err(ParseError::RepeatedField(field));
            }
            found.push((field, line_start, line_start + indent + field.len() + 1));
            if found.len() == fields.len() {
                break; // the rest is the input
            }
        }
        line_start += line.len();
    }
    for (i, &field) in fields.iter().enumerate() {
        match found.get(i) {
            Some(&(at, ..)) if at == field => {}
            Some(&(at, ..)) if found.iter().any(|&(seen, ..)| seen == field) => {
                return Err(ParseError::WrongOrder(at, format));
            }
            _ => return Err(ParseError::MissingField(field)),
        }
    }
    if !reply[..found[0].1].trim().is_empty() {
        return Err(ParseError::LeadingText(fields[0]));
    }
    let (action, input) = (found[fields.len() - 2], found[fields.len() - 1]);
    Ok([reply[action.2..input.1].trim(), reply[input.2..].trim()])
}

struct Arguments {
    action: &'static str,
    pairs: Vec<(String, Value)>,
}

impl Arguments {
    fn value(&self, key: &'static str) -> Result<&Value, ParseError> {
        let found = self.pairs.iter().find(|(k, _)| k == key);
        found.map(|(_, value)| value).ok_or(ParseError::MissingKey { action: self.action, key })
    }

    fn text(&self, key: &'static str) -> Result<String, ParseError> {
        let text = self.value(key)?.as_str();
        text.map(str::to_string).ok_or(ParseError::WrongType { key, expected: "a string" })
    }

    fn number(&self, key: &'static str) -> Result<u64, ParseError> {
        self.value(key)?.as_u64().ok_or(ParseError::WrongType { key, expected: "a whole number of at least 0" })
    }
}

/// Reads the pairs of a JSON object as written, repeated keys included. Error: not JSON, not an object, or followed by
/// text.
fn read_object(text: &str) -> Result<Vec<(String, Value)>, ParseError> {
    struct Pairs;
    impl<'de> Visitor<'de> for Pairs {
        type Value = Vec<(String, Value)>;
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a JSON object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut pairs = Vec::new();
            while let Some(pair) = map.next_entry()? {
                pairs.push(pair);
            }
            Ok(pairs)
        }
    }
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<serde::de::IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => {}
        Some(Err(e)) => return Err(ParseError::NotJson(e.to_string())),
        None => return Err(ParseError::NotJson("it is empty".to_string())),
    }
    let rest = text[values.byte_offset()..].trim();
    if !rest.is_empty() {
        return Err(ParseError::TrailingText(rest.chars().take(80).collect()));
    }
    if !text.starts_with('{') {
        return Err(ParseError::NotAnObject);
    }
    serde_json::Deserializer::from_str(text).deserialize_map(Pairs).map_err(|e| ParseError::NotJson(e.to_string()))
}

/// The action's name.
pub fn name(action: &Action) -> &'static str {
    match action {
        Action::ListFiles { .. } => "List Files",
        Action::CopyFile { .. } => "Copy File",
        Action::InspectScriptLines { .. } => "Inspect Script Lines",
        Action::ExecuteScript { .. } => "Execute Script",
        Action::EditScript { .. } => "Edit Script",
        Action::FinalAnswer { .. } => "Final Answer",
    }
}

/// Renders an action as its canonical text: two lines, with the input as Python's `json.dumps` writes it.
pub fn render(action: &Action) -> String {
    let pairs: Vec<(&str, String)> = match action {
        Action::ListFiles { dir_path } => vec![("dir_path", quote(dir_path))],
        Action::CopyFile { source, destination } => {
            vec![("source", quote(source)), ("destination", quote(destination))]
        }
        Action::InspectScriptLines { script_name, start_line_number, end_line_number } => vec![
            ("script_name", quote(script_name)),
            ("start_line_number", start_line_number.to_string()),
            ("end_line_number", end_line_number.to_string()),
        ],
        Action::ExecuteScript { script_name } => vec![("script_name", quote(script_name))],
        Action::EditScript { script_name, search, replace } => {
            vec![("script_name", quote(script_name)), ("search", quote(search)), ("replace", quote(replace))]
        }
        Action::FinalAnswer { final_answer } => vec![("final_answer", quote(final_answer))],
    };
    let input = pairs.iter().map(|(k, v)| format!("\"{k}\": {v}")).collect::<Vec<_>>().join(", ");
    format!("Action: {}\nAction Input: {{{input}}}", name(action))
}

/// Quotes a text as a JSON string as Python's `json.dumps` does: everything outside printable ASCII is escaped, with
/// UTF-16 surrogate pairs where needed.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            _ => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn edit(search: &str, replace: &str) -> Action {
        Action::EditScript { script_name: "train.py".into(), search: search.into(), replace: replace.into() }
    }

    #[test]
    fn canonical_text_is_that_of_json_dumps() {
        let written = render(&edit("n =\t\"a\\b\"", "é\u{7f}\u{1F600}\n/"));
        // json.dumps({"script_name": "train.py", "search": 'n =\t"a\\b"', "replace": "é\x7f😀\n/"})
        let expected = "Action: Edit Script\nAction Input: {\"script_name\": \"train.py\", \"search\": \"n =\\t\\\"a\\\\b\\\"\", \"replace\": \"\\u00e9\\u007f\\ud83d\\ude00\\n/\"}";
        assert_eq!(written, expected);
    }

    #[test]
    fn every_action_is_read_back() {
        for action in [
            Action::ListFiles { dir_path: ".".into() },
            Action::CopyFile { source: "a.py".into(), destination: "b.py".into() },
            Action::InspectScriptLines { script_name: "a.py".into(), start_line_number: 1, end_line_number: 20 },
            Action::ExecuteScript { script_name: "a.py".into() },
            edit("model =", "model = 1"),
            Action::FinalAnswer { final_answer: "done".into() },
        ] {
            let text = render(&action);
            assert!(text.starts_with(&format!("Action: {}\n", name(&action))), "{text}");
            assert_eq!(parse(&text, ReplyFormat::NoThought).as_ref(), Ok(&action));
            let thought =
                format!("Reflection: r\nResearch Plan and Status: 1. a\n2. b\nFact Check: f\nThought:\n{text}");
            assert_eq!(parse(&thought, ReplyFormat::Thought).as_ref(), Ok(&action));
        }
    }

    #[test]
    fn white_space_is_free() {
        for reply in [
            "\n  Action:Execute Script  \n\n\tAction Input:\n{\n  \"script_name\" :\"a.py\"\n}\n\n",
            "Action: Execute Script\r\nAction Input: {\"script_name\":\"a.py\"}\r\n",
        ] {
            let expected = Action::ExecuteScript { script_name: "a.py".into() };
            assert_eq!(parse(reply, ReplyFormat::NoThought), Ok(expected), "{reply:?}");
        }
    }

    #[test]
    fn malformed_replies() {
        use ParseError::*;
        let run = "Action: Execute Script\nAction Input: ";
        let inspect = "Action: Inspect Script Lines\nAction Input: ";
        let (thought, no_thought) = (ReplyFormat::Thought, ReplyFormat::NoThought);
        let not_json = |text: &str| NotJson(text.to_string());
        let unknown = |key: &str| UnknownKey { action: "Execute Script", key: key.into() };
        let cases: Vec<(ReplyFormat, String, ParseError)> = vec![
            (no_thought, "".into(), MissingField("Action")),
            (no_thought, "I would run it.".into(), MissingField("Action")),
            (no_thought, "Action: Execute Script".into(), MissingField("Action Input")),
            (no_thought, "Action Input: {\"script_name\": \"a\"}".into(), MissingField("Action")),
            (no_thought, "Action: Execute Script Action Input: {}".into(), MissingField("Action Input")),
            (no_thought, "action: Execute Script\nAction Input: {}".into(), MissingField("Action")),
            (thought, format!("{run}{{\"script_name\": \"a\"}}"), MissingField("Reflection")),
            (
                thought,
                format!("Reflection: r\nFact Check: f\nThought: t\n{run}{{}}"),
                MissingField("Research Plan and Status"),
            ),
            (
                thought,
                format!("Reflection: r\nFact Check: f\nResearch Plan and Status: p\nThought: t\n{run}{{}}"),
                WrongOrder("Fact Check", thought),
            ),
            (no_thought, "Action Input: {}\nAction: Execute Script".into(), WrongOrder("Action Input", no_thought)),
            (no_thought, format!("Action: List Files\n{run}{{}}"), RepeatedField("Action")),
            (no_thought, format!("Sure!\n{run}{{\"script_name\": \"a\"}}"), LeadingText("Action")),
            (no_thought, "Action: Run\nAction Input: {}".into(), UnknownAction("Run".into())),
            (no_thought, "Action: execute script\nAction Input: {}".into(), UnknownAction("execute script".into())),
            (no_thought, "Action: Understand File\nAction Input: {}".into(), UnknownAction("Understand File".into())),
            (no_thought, "Action:\nAction Input: {}".into(), UnknownAction("".into())),
            (no_thought, run.into(), not_json("it is empty")),
            (no_thought, format!("{run}[\"a\"]"), NotAnObject),
            (no_thought, format!("{run}\"a\""), NotAnObject),
            (no_thought, format!("{run}{{\"script_name\": \"a\"}} I hope"), TrailingText("I hope".into())),
            (no_thought, format!("{run}{{\"script_name\": \"a\"}}\n{run}{{}}"), TrailingText(format!("{run}{{}}"))),
            (no_thought, format!("{run}{{\"script\": \"a\"}}"), unknown("script")),
            (no_thought, format!("{run}{{\"Script_Name\": \"a\"}}"), unknown("Script_Name")),
            (no_thought, format!("{run}{{\"script_name\": \"a\", \"why\": \"b\"}}"), unknown("why")),
            (
                no_thought,
                format!("{run}{{\"script_name\": \"a\", \"script_name\": \"b\"}}"),
                RepeatedKey("script_name".into()),
            ),
            (no_thought, format!("{run}{{}}"), MissingKey { action: "Execute Script", key: "script_name" }),
            (
                no_thought,
                format!("{run}{{\"script_name\": 3}}"),
                WrongType { key: "script_name", expected: "a string" },
            ),
            (
                no_thought,
                format!("{inspect}{{\"script_name\": \"a\", \"start_line_number\": \"1\", \"end_line_number\": 2}}"),
                WrongType { key: "start_line_number", expected: "a whole number of at least 0" },
            ),
            (
                no_thought,
                format!("{inspect}{{\"script_name\": \"a\", \"start_line_number\": 1, \"end_line_number\": -2}}"),
                WrongType { key: "end_line_number", expected: "a whole number of at least 0" },
            ),
        ];
        for (format, reply, expected) in cases {
            assert_eq!(parse(&reply, format), Err(expected), "{reply:?}");
        }
        for broken in [
            "{\"script_name\": \"a\"",
            "{script_name: \"a\"}",
            "{'script_name': 'a'}",
            "```json\n{}\n```",
            "{\"script_name\": \"a\nb\"}",
        ] {
            let got = parse(&format!("{run}{broken}"), no_thought);
            assert!(matches!(got, Err(NotJson(_))), "{broken:?} {got:?}");
        }
    }

    #[test]
    fn errors_name_what_is_valid() {
        let text = |reply: &str| parse(reply, ReplyFormat::NoThought).unwrap_err().to_string();
        assert!(
            text("Action: Run\nAction Input: {}")
                .ends_with("List Files, Copy File, Inspect Script Lines, Execute Script, Edit Script, Final Answer")
        );
        assert_eq!(
            text("Action: Copy File\nAction Input: {\"source\": \"a\"}"),
            "\"Copy File\" needs the argument \"destination\"; it takes \"source\", \"destination\""
        );
    }

    proptest! {
        /// Any text survives rendering and reading; the rendered text is ASCII on two lines.
        #[test]
        fn any_edit_survives(search in any::<String>(), replace in any::<String>()) {
            let text = render(&edit(&search, &replace));
            prop_assert!(text.is_ascii() && text.lines().count() == 2);
            prop_assert_eq!(parse(&text, ReplyFormat::NoThought), Ok(edit(&search, &replace)));
        }

        /// Nothing a model writes makes the parser panic.
        #[test]
        fn garbage_is_refused_quietly(reply in "(Action: |Action Input: |Thought: |[{}\":\n é]|Edit Script|script_name){0,12}") {
            for format in [ReplyFormat::Thought, ReplyFormat::NoThought] {
                let got = parse(&reply, format);
                prop_assert!(got.is_err(), "{reply:?} has no complete action");
            }
        }
    }
}
