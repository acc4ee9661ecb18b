//! QEMU's own control socket, for the one thing that is wanted of it: to quit.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks QEMU to quit. It may be gone before it answers, so whether it does is to be seen from its process.
///
/// # Errors
/// It could not be asked.
pub fn quit(socket: &Path) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    lines.next().transpose()?;
    stream.write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
    lines.next().transpose()?;
    stream.write_all(b"{\"execute\":\"quit\"}\n")
}
