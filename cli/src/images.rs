//! Where the hypervisor's and the control domain's images are.

use std::path::{Path, PathBuf};

use crate::problem::{Problem, Result, Status};

/// What a host is booted from.
#[derive(Clone, Debug)]
pub struct Images {
    /// The hypervisor, for Multiboot 1.
    pub hypervisor: PathBuf,
    /// The control domain's kernel.
    pub control: PathBuf,
}

/// Names in a directory of images.
const INSTALLED: [(&str, &str); 1] = [("proxenos.multiboot", "control")];

/// Places in a workspace's target directory, as xtask leaves them.
const BUILT: [(&str, &str); 1] = [(
    "hypervisor/x86_64-unknown-none/release/proxenos.multiboot",
    "guest-x86_64/x86_64-unknown-none/guest/proxenos-control",
)];

/// Finds images: in the directory that was named (an option, or `PROXENOS_IMAGES`), beside the executable, or where
/// xtask has built them.
///
/// # Errors
/// They are nowhere; the message says where they were looked for.
pub fn find(named: Option<&Path>) -> Result<Images> {
    let mut tried = Vec::new();
    let candidates = match named {
        Some(dir) => vec![dir.to_owned()],
        None => places(),
    };
    for dir in candidates {
        for (hypervisor, control) in INSTALLED.iter().chain(&BUILT) {
            let images = Images { hypervisor: dir.join(hypervisor), control: dir.join(control) };
            if images.hypervisor.is_file() && images.control.is_file() {
                return Ok(images);
            }
        }
        tried.push(dir.display().to_string());
    }
    Err(Problem::new(Status::Missing, "cannot find the images of hypervisor and control domain")
        .because(format!("there is no proxenos.multiboot with a control in {}", tried.join(", ")))
        .hint("`cargo xtask build proxenos proxenos-control` in the workspace, or set PROXENOS_IMAGES (--images) to the directory that has them"))
}

/// Directories to look in, the nearest first.
fn places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Some(bin) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        places.push(bin.join("../lib/proxenos"));
    }
    places.extend(workspace().map(|root| root.join("target")));
    places
}

/// The workspace: above the executable (which cargo puts below its target directory), or above where we are.
pub fn workspace() -> Option<PathBuf> {
    let exe = std::env::current_exe().ok();
    let here = std::env::current_dir().ok();
    [exe, here].into_iter().flatten().find_map(|path| {
        let root =
            path.ancestors().find(|dir| dir.join("hypervisor/Cargo.toml").is_file() && dir.join("xtask").is_dir());
        root.map(Path::to_owned)
    })
}
