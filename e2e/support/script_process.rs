//! Scripts of `e2e/tools/` that hold something running until our end of their standard input closes: also when this process is killed.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// `e2e/tools/SCRIPT hold`, which takes orders and answers each with a line.
#[derive(Debug)]
pub struct ScriptProcess {
    process: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl ScriptProcess {
    /// Starts it; its first answer says whether what it holds is ready.
    pub fn start(script: &str, arguments: &[&str]) -> ScriptProcess {
        let mut process = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/tools").join(script))
            .arg("hold")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for this process; the script cleans up when it ends.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("start e2e/tools/{script}: {error}"));
        let orders = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().unwrap());
        ScriptProcess { process, orders, answers }
    }

    /// Gives an order and takes the answer.
    pub fn order(&mut self, order: &str) -> String {
        writeln!(self.orders.as_ref().unwrap(), "{order}").expect("the script has ended");
        self.answer()
    }

    /// The next line; empty when it has ended.
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
