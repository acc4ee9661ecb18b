//! The workspace as cargo sees it: where it is, where its output goes, and which packages are what.
//!
//! Nothing is listed by hand: host packages are cargo's default members, guests are the packages under `guests/`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cargo_metadata::{CargoOpt, Metadata, MetadataCommand, Package};

use crate::guest_meta::GuestMeta;

/// The hypervisor's package.
pub const HYPERVISOR: &str = "proxenos";

/// One guest package and what its manifest says about it.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Package name, which is also its binary's.
    pub name: String,
    /// Directory of its manifest.
    pub dir: PathBuf,
    /// `[package.metadata.proxenos]`.
    pub meta: GuestMeta,
}

/// What `cargo metadata` says of this workspace.
pub struct Workspace {
    metadata: Metadata,
}

/// The control domain's package: built as a guest.
pub const CONTROL: &str = "proxenos-control";

/// The package of the guest SDK.
const GUEST_SDK: &str = "proxenos-guest";

impl Workspace {
    /// Asks cargo. Offline and quick: dependencies are not resolved.
    pub fn load() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
        let mut command = MetadataCommand::new();
        command.manifest_path(manifest).no_deps().features(CargoOpt::AllFeatures);
        Ok(Self { metadata: command.exec().context("cannot read the workspace")? })
    }

    /// The repository's root.
    pub fn root(&self) -> &Path {
        self.metadata.workspace_root.as_std_path()
    }

    /// Cargo's target directory; every file this tool makes is below it.
    pub fn target(&self) -> &Path {
        self.metadata.target_directory.as_std_path()
    }

    /// A directory below the target directory, made if it is missing.
    pub fn target_subdir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.target().join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// Names of the packages with tests for the host: the default members, and the guest SDK, whose arithmetic is
    /// tested here though it is built for guests only.
    pub fn host_packages(&self) -> Vec<String> {
        let default = self.metadata.workspace_default_packages().into_iter().map(|p| p.name.to_string());
        default.chain([GUEST_SDK.to_owned()]).collect()
    }

    /// Whether the workspace has the hypervisor in a buildable state.
    pub fn has_hypervisor(&self) -> bool {
        self.metadata.workspace_packages().iter().any(|p| p.name.as_str() == HYPERVISOR)
    }

    /// The packages under `guests/`, and the control domain, by name.
    pub fn guests(&self) -> Result<Vec<Guest>> {
        let guests_dir = self.root().join("guests");
        let mut guests = Vec::new();
        for package in self.metadata.workspace_packages() {
            let dir = manifest_dir(package);
            if dir.parent() == Some(&guests_dir) || package.name.as_str() == CONTROL {
                let meta = GuestMeta::from_package_metadata(&package.metadata)
                    .with_context(|| format!("[package.metadata.proxenos] of {}", package.name))?;
                guests.push(Guest { name: package.name.to_string(), dir, meta });
            }
        }
        guests.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(guests)
    }
}

fn manifest_dir(package: &Package) -> PathBuf {
    package.manifest_path.parent().map(|p| p.as_std_path().to_path_buf()).unwrap_or_default()
}

/// `cargo xtask clean`: removes the whole target directory's contents, but for the running tool itself, which cargo
/// rebuilds when it has to.
pub fn clean() -> Result<()> {
    let workspace = Workspace::load()?;
    let running = std::env::current_exe().ok();
    let entries = match std::fs::read_dir(workspace.target()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for entry in entries {
        let path = entry?.path();
        // Cargo's own record of the directory, and the directory this very program runs from, stay.
        if path.file_name().is_some_and(|n| n == "CACHEDIR.TAG" || n == ".rustc_info.json")
            || running.as_ref().is_some_and(|exe| exe.starts_with(&path))
        {
            continue;
        }
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}
