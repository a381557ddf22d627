//! Lines of JSON through a Python stream function: each line of the input is an event, each result a
//! line of the output.
//!
//! ```sh
//! velo supervisor start --socket /tmp/velo.sock &
//! seq 5 | cargo run --release --example lines -- /tmp/velo.sock counting:totals ./functions
//! ```

use std::error::Error;
use std::io::{BufRead, Write, stdin, stdout};
use std::process::ExitCode;

use serde_json::Value;
use velo_supervisor::stream::{Connection, StreamOptions};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lines: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [socket, function, folder] = &arguments[..] else {
        return Err(
            "give the supervisor's socket, `module:function` and the module's folder".into(),
        );
    };
    let velo = Connection::connect(socket)?;
    let mut stream = velo.open(function, &StreamOptions::new().path(folder))?;
    let mut failed = None;
    let events = stdin().lock().lines().map_while(|line| {
        let event = parse(line);
        event.map_err(|error| failed = Some(error)).ok()
    });
    for result in stream.feed::<Value, _>(events) {
        write(&result?)?;
    }
    stream.end()?;
    while let Some(result) = stream.recv::<Value>()? {
        write(&result)?;
    }
    failed.map_or(Ok(()), Err)
}

fn parse(line: std::io::Result<String>) -> Result<Value, Box<dyn Error>> {
    Ok(serde_json::from_str(&line?)?)
}

/// Writes a result at once, so that a reader sees the progress.
fn write(result: &Value) -> Result<(), Box<dyn Error>> {
    let mut out = stdout().lock();
    writeln!(out, "{result}")?;
    Ok(out.flush()?)
}
