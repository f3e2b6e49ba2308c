//! A process that reads and writes a cache with a real client library: one JSON line per request, one per answer.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

/// The process.
pub struct Reader {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// What it said at first.
    pub library: String,
}

/// Where `scripts/test clients` puts the libraries.
pub fn libraries() -> PathBuf {
    std::env::var_os("TEST_CLIENTS")
        .map(PathBuf::from)
        .expect("TEST_CLIENTS names no directory: run scripts/test clients")
}

impl Reader {
    pub fn start(command: &mut Command) -> Reader {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (requests, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut reader = Reader { child, requests, answers, library: String::new() };
        let ready = reader.answer();
        assert_eq!(ready["ready"], json!(true), "{ready}");
        reader.library = ready["library"].as_str().unwrap_or_default().to_owned();
        reader
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("not an answer: {line}"))
    }

    pub fn ask(&mut self, request: &Value) -> Value {
        writeln!(self.requests, "{request}").unwrap();
        let answer = self.answer();
        assert_eq!(answer["ok"], json!(true), "{request} gave {answer}");
        answer
    }

    pub fn set(&mut self, key: &str, value: &str, tags: &[&str]) {
        self.ask(&json!({"op": "set", "key": key, "value": value, "tags": tags, "timeout": 3600}));
    }

    /// Some libraries name a record by its tags, too.
    pub fn get_with(&mut self, key: &str, tags: &[&str]) -> Value {
        self.ask(&json!({"op": "get", "key": key, "tags": tags}))["value"].clone()
    }

    pub fn get(&mut self, key: &str) -> Value {
        self.get_with(key, &[])
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
