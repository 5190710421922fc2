//! Statements as `walferry check` prints them, run as they stand by the one who is to run them.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use super::{Server, TestEnv};

/// Statements for one place, in their order.
#[derive(Debug)]
pub struct Printed {
    /// The subject and the check that they are printed for.
    pub finding: String,
    pub at_source: bool,
    pub sql: String,
}

impl Printed {
    /// Whether they are for the primary of a source that is a standby.
    pub fn at_primary(&self) -> bool {
        self.sql.contains("-- at the primary\n") || self.sql.contains("/* at the primary */")
    }

    /// Whether they say that PostgreSQL has to start again.
    pub fn restarts(&self) -> bool {
        self.sql.contains("then restart PostgreSQL")
    }

    /// Runs them: at the destination, or by psql at `server`, with the privileges of the role that they name, else as a superuser.
    #[track_caller]
    pub fn run(&self, env: &TestEnv, server: &Server) {
        if !self.at_source {
            for statement in self.sql.split_inclusive(";\n") {
                env.clickhouse.query("default", statement.trim_end().trim_end_matches(';'));
            }
            return;
        }
        psql(env, server, self.role(), &self.sql);
    }

    /// The role that a comment names; `None` where it speaks of one in other words, or of none.
    fn role(&self) -> Option<&str> {
        let words = [("-- as ", "\n"), ("/* as ", " */")].into_iter().find_map(|(before, after)| {
            let (_, rest) = self.sql.split_once(before)?;
            Some(rest.split_once(after)?.0)
        });
        let role = words?.split(',').next()?;
        Some(role).filter(|role| *role != "superuser" && !role.contains(' '))
    }
}

/// Feeds psql with statements for the test's database, as a superuser or with the privileges of `role` alone.
#[track_caller]
fn psql(env: &TestEnv, server: &Server, role: Option<&str>, sql: &str) {
    let role = role.map_or_else(String::new, |role| format!("SET ROLE \"{role}\";\n"));
    let mut child = Command::new("psql")
        .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "postgres", "-p"])
        .args([&server.port.to_string(), "-d", &env.database])
        .env("PGPASSWORD", "postgres-test")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start psql");
    let _ = child.stdin.take().unwrap().write_all(format!("{role}{sql}\n;\n").as_bytes());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{role}{sql}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What `check` prints below `title`, such as `To fix:`. Of several choices the first one that is statements.
pub fn printed(report: &str, title: &str) -> Vec<Printed> {
    let Some((_, below)) = report.split_once(&format!("\n{title}\n")) else { return Vec::new() };
    let mut all: Vec<Printed> = Vec::new();
    // Whether the finding at hand has had statements, and whether another choice follows them.
    let (mut open, mut had, mut over) = (false, false, false);
    let mut finding = String::new();
    for line in below.lines().take_while(|line| line.starts_with("  ")) {
        let Some(line) = line.strip_prefix("    ") else {
            finding = line.trim().to_owned();
            (open, had, over) = (false, false, false);
            continue;
        };
        match line {
            "-- or" => (open, over) = (false, over || had),
            _ if over => {}
            "-- at the source" | "-- at the destination" => {
                let (finding, at_source) = (finding.clone(), line.ends_with("source"));
                all.push(Printed { finding, at_source, sql: String::new() });
                (open, had) = (true, true);
            }
            _ if line.starts_with("in ") => open = false,
            _ => {
                if let Some(block) = all.last_mut().filter(|_| open) {
                    block.sql.push_str(line);
                    block.sql.push('\n');
                }
            }
        }
    }
    all
}
