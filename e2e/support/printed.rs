//! Statements that `walferry check` prints, run unchanged with the privileges that they ask for.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use super::{Server, TestEnv};

/// Statements for one server, in their order.
#[derive(Debug)]
pub struct Printed {
    /// The line of the finding that they fix.
    pub finding: String,
    pub at_source: bool,
    pub sql: String,
}

impl Printed {
    /// Whether they must run at the primary of a source that is a standby.
    pub fn at_primary(&self) -> bool {
        self.sql.contains("-- at the primary\n") || self.sql.contains("/* at the primary */")
    }

    /// Whether they take effect only after a restart of PostgreSQL.
    pub fn restarts(&self) -> bool {
        self.sql.contains("then restart PostgreSQL")
    }

    /// Runs them at the destination, or with psql at `server` as the role that they name. Without a named
    /// role they run as a superuser.
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

    /// The role that a comment names; `None` if it describes one in words or names none.
    fn role(&self) -> Option<&str> {
        let words = [("-- as ", "\n"), ("/* as ", " */")].into_iter().find_map(|(before, after)| {
            let (_, rest) = self.sql.split_once(before)?;
            Some(rest.split_once(after)?.0)
        });
        let role = words?.split(',').next()?;
        Some(role).filter(|role| *role != "superuser" && !role.contains(' '))
    }
}

/// Runs statements in the test's database with psql, as a superuser or with only the privileges of `role`.
#[track_caller]
fn psql(env: &TestEnv, server: &Server, role: Option<&str>, sql: &str) {
    let role = role.map_or_else(String::new, |role| format!("SET ROLE \"{role}\";\n"));
    let mut child = Command::new("psql")
        .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", &server.admin.user, "-p"])
        .args([&server.port.to_string(), "-d", &env.database])
        .env("PGPASSWORD", &server.admin.password)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start psql");
    let _ = child.stdin.take().unwrap().write_all(format!("{role}{sql}\n;\n").as_bytes());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{role}{sql}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The statements that `check` prints below `title`, such as `To fix:`. Of several choices the first one that
/// consists of statements is taken.
pub fn printed(report: &str, title: &str) -> Vec<Printed> {
    let Some((_, below)) = report.split_once(&format!("\n{title}\n")) else { return Vec::new() };
    let mut all: Vec<Printed> = Vec::new();
    // Whether the current finding already had statements, and whether an alternative to them follows.
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
