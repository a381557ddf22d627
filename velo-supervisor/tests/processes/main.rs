//! The supervisor with real processes. Each test runs in a process of its own, since a process has
//! one embedded supervisor; this program is also their zygote, their workers and their clients.
//!
//! `cargo test --test processes -- NAME` runs the tests whose name contains NAME.

mod deaths;
mod forks;
mod harness;
mod links;
mod stopping;
mod worker;

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// A test that takes longer than this hangs.
const BOUND: Duration = Duration::from_secs(150);
const ROLE: &str = "VELO_TEST_ROLE";

type Test = (&'static str, fn());

fn tests() -> Vec<Test> {
    [links::TESTS, deaths::TESTS, stopping::TESTS, forks::TESTS].concat()
}

fn main() -> ExitCode {
    if let Ok(role) = std::env::var(ROLE) {
        // What this process starts has roles of its own.
        // SAFETY: this process has one thread.
        unsafe { std::env::remove_var(ROLE) };
        return run_role(&role);
    }
    if std::env::var_os(velo_supervisor::ZYGOTE_FD_ENV).is_some() {
        worker::main();
    }
    let filters: Vec<_> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let chosen = tests().into_iter().filter(|(name, _)| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    });
    let mut failed = 0;
    for (name, _) in chosen {
        let start = Instant::now();
        let verdict = run_apart(name);
        failed += usize::from(verdict.is_err());
        let verdict = verdict.map_or_else(|why| format!("FAILED: {why}"), |()| "ok".into());
        println!(
            "test {name} ... {verdict} ({:.2} s)",
            start.elapsed().as_secs_f64()
        );
    }
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run_role(role: &str) -> ExitCode {
    match tests().into_iter().find(|(name, _)| *name == role) {
        Some((_, test)) => test(),
        None => deaths::client(role),
    }
    ExitCode::SUCCESS
}

/// This program again, in a role.
fn program(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the test's own program"));
    command
        .env(ROLE, role)
        .env_remove(velo_supervisor::ZYGOTE_FD_ENV)
        .stdin(Stdio::null());
    command
}

fn run_apart(name: &str) -> Result<(), String> {
    let mut child = program(name).spawn().map_err(|error| error.to_string())?;
    let deadline = Instant::now() + BOUND;
    loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(status.to_string()),
            None if Instant::now() > deadline => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("not done within {BOUND:?}"));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}
