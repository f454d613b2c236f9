//! The other side: peer.py in a process of its own, which waits while we compute.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A running worker, and what it says of itself.
pub struct Peer {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// Versions of Python, torch, transformers, peft.
    pub versions: Value,
}

impl Peer {
    /// Starts the worker with the Python of the folder that install.sh made. Errors say why there is none.
    pub fn start(folder: Option<&Path>) -> Result<Self, String> {
        let folder = folder.ok_or("no --torch FOLDER; benches/peers/install.sh FOLDER makes one")?;
        let python = folder.join("bin/python");
        if !python.exists() {
            return Err(format!("{} is not there; benches/peers/install.sh makes it", python.display()));
        }
        let mut child = Command::new(&python)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/peer.py"))
            .env("LD_LIBRARY_PATH", folder.join("cudastubs"))
            .env("HF_HUB_OFFLINE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}", python.display()))?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the worker has no pipes".to_string());
        };
        let mut peer =
            Self { child, requests: Some(requests), answers: BufReader::new(answers), versions: Value::Null };
        peer.versions = peer.answer()?;
        Ok(peer)
    }

    /// One request, answered; `do` and `name` first, the rest in `more`.
    pub fn ask<T: DeserializeOwned>(&mut self, verb: &str, name: &str, more: Value) -> Result<T, String> {
        let mut request = json!({"do": verb, "name": name});
        if let (Value::Object(request), Value::Object(more)) = (&mut request, more) {
            request.extend(more);
        }
        let gone = |e: std::io::Error| format!("the worker is gone: {e}");
        if let Some(requests) = &mut self.requests {
            writeln!(requests, "{request}").map_err(gone)?;
            requests.flush().map_err(gone)?;
        }
        serde_json::from_value(self.answer()?).map_err(|e| format!("{verb} {name}: {e}"))
    }

    fn answer(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(|e| e.to_string())?;
        if line.is_empty() {
            return Err("the worker died; its message is above".to_string());
        }
        let answer: Value = serde_json::from_str(&line).map_err(|e| format!("not a whole answer (NaN?): {e}"))?;
        match answer.get("error") {
            Some(error) => Err(error.as_str().unwrap_or("an error without a message").to_string()),
            None => Ok(answer),
        }
    }
}

impl Drop for Peer {
    /// The end of its input ends the worker.
    fn drop(&mut self) {
        self.requests = None;
        let _ = self.child.wait();
    }
}
