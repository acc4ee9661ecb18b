//! `proxenos`: guests on a Proxenos host, from the shell.
//!
//! There is no daemon: each command finds the host's machine by its files ([`host`]), talks to the control domain in
//! it over a channel of its own ([`session`], protocol: `proxenos-rpc`) and ends. [`args`] is the command line,
//! [`commands`] what each does, [`problem`] how it fails.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod config;
mod host;
mod images;
mod problem;
mod session;
mod source;
mod terminal;
mod units;
mod upload;
mod view;

use std::process::ExitCode;

use clap::Parser;

use crate::problem::Status;

fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // The reader of help may have gone, as `| head` does.
            drop(error.print());
            return if error.use_stderr() { Status::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    match commands::execute(&cli) {
        Ok(status) => ExitCode::from(status),
        Err(problem) => {
            eprintln!("proxenos: {problem}");
            problem.status.into()
        }
    }
}
