//! The hypervisor's own messages: the `log` crate's macros, printed as lines that begin with `(px) `.

use super::CONSOLE;
use crate::options::LogLevel;
use core::fmt::Write;
use log::{Level, LevelFilter, Log, Metadata, Record};

struct Logger;

static LOGGER: Logger = Logger;

/// Lets messages of `level` and more important ones through.
pub fn init(level: LogLevel) {
    let filter = match level {
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    };
    // It fails only if there is a logger already, which then is this one.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(filter);
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mark = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info | Level::Debug | Level::Trace => "",
        };
        let mut console = CONSOLE.lock();
        console.start_line();
        // Writing to the console cannot fail.
        let _ = writeln!(Lines(&mut console), "(px) {mark}{}", record.args());
    }

    fn flush(&self) {}
}

/// The console as something that formatting can write to.
pub(super) struct Lines<'a>(pub &'a mut super::Console);

impl Write for Lines<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}
