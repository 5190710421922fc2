//! Scripts of `e2e/tools/` that keep servers running until their standard input closes, which also happens
//! when this process is killed.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// `e2e/tools/SCRIPT serve`, which reads orders and answers each with one line.
#[derive(Debug)]
pub struct ScriptProcess {
    process: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl ScriptProcess {
    /// Starts the script. Its first answer says whether its servers are ready.
    pub fn start(script: &str, arguments: &[&str]) -> ScriptProcess {
        let mut process = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/tools").join(script))
            .arg("serve")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C must reach this process only: the script cleans up when its input closes.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("start e2e/tools/{script}: {error}"));
        let orders = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().unwrap());
        ScriptProcess { process, orders, answers }
    }

    /// Sends an order and returns the answer.
    pub fn order(&mut self, order: &str) -> String {
        writeln!(self.orders.as_ref().unwrap(), "{order}").expect("the script has ended");
        self.answer()
    }

    /// The next line; empty after the script has ended.
    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for ScriptProcess {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.process.wait();
    }
}
