//! `cargo xtask image`: a CD-ROM image that GRUB boots, in QEMU and on hardware.
//!
//! GRUB loads the hypervisor by Multiboot 2 and the guest as its first module. It leaves the file name out of a command
//! line, so a module's line repeats a name as its first word (the hypervisor drops that word).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::further::Module;
use crate::workspace::Workspace;
use crate::{ImageArgs, apt, console, qemu, run};

/// What goes into an image.
#[derive(Clone, Debug)]
pub struct Contents<'a> {
    /// The hypervisor's ELF64 file.
    pub hypervisor: &'a Path,
    /// Domain 0's kernel.
    pub kernel: &'a Path,
    /// Its initial RAM disk.
    pub initrd: Option<&'a Path>,
    /// Further domains.
    pub further: &'a [Module],
    /// The hypervisor's command line.
    pub hypervisor_line: String,
    /// The guest's command line.
    pub guest_line: String,
    /// Seconds for which GRUB shows its menu.
    pub menu_seconds: u32,
}

/// Makes sure that GRUB's image maker and what it calls are there.
pub fn need() -> Result<()> {
    let why = "to make a bootable image";
    apt::need_program("grub-mkrescue", &["grub-common", "grub-pc-bin", "xorriso", "mtools"], why)?;
    apt::need_program("xorriso", &["xorriso"], why)?;
    apt::need_program("mformat", &["mtools"], why)?;
    if !Path::new("/usr/lib/grub/i386-pc").is_dir() && apt::available() {
        apt::install(&["grub-pc-bin"], why)?;
    }
    Ok(())
}

/// GRUB's menu.
fn menu(contents: &Contents<'_>) -> Result<String> {
    let quote = |text: &str| -> Result<String> {
        // Within single quotes GRUB takes everything as it is, but has no way to write a single quote.
        ensure!(!text.contains(['\'', '\n']), "GRUB cannot be told a command line with a quote in it: {text}");
        Ok(text.split_whitespace().map(|word| format!(" '{word}'")).collect())
    };
    let mut others = String::new();
    if contents.initrd.is_some() {
        others.push_str("  module2 /boot/initrd initrd\n");
    }
    for (number, module) in (1..).zip(contents.further) {
        others.push_str(&format!("  module2 /boot/domain{number} domain{number}{}\n", quote(&module.line)?));
    }
    Ok(format!(
        "set timeout={}\nset default=0\nserial --unit=0 --speed=115200\nterminal_output console serial\n\
         terminal_input console serial\n\nmenuentry 'Proxenos' {{\n  multiboot2 /boot/proxenos{}\n  \
         module2 /boot/domain0 domain0{}\n{others}}}\n",
        contents.menu_seconds,
        quote(&contents.hypervisor_line)?,
        quote(&contents.guest_line)?,
    ))
}

/// Writes an image.
///
/// # Errors
/// Where a file is missing, a command line cannot be written for GRUB, or GRUB's image maker fails.
pub fn make(contents: &Contents<'_>, output: &Path) -> Result<()> {
    let tree = tempfile::tempdir()?;
    let boot = tree.path().join("boot");
    std::fs::create_dir_all(boot.join("grub"))?;
    let files =
        [("proxenos", Some(contents.hypervisor)), ("domain0", Some(contents.kernel)), ("initrd", contents.initrd)];
    for (name, file) in files.into_iter().filter_map(|(name, file)| Some((name, file?))) {
        std::fs::copy(file, boot.join(name)).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    for (number, module) in (1..).zip(contents.further) {
        let file = &module.kernel;
        std::fs::copy(file, boot.join(format!("domain{number}")))
            .with_context(|| format!("cannot copy {}", file.display()))?;
    }
    std::fs::write(boot.join("grub/grub.cfg"), menu(contents)?)?;
    let made = Command::new("grub-mkrescue")
        .args(["--locales=", "--themes=", "--fonts=", "-o"])
        .arg(output)
        .arg(tree.path())
        .stdin(Stdio::null())
        .output()
        .context("cannot run grub-mkrescue")?;
    if !made.status.success() {
        bail!("grub-mkrescue failed:\n{}", String::from_utf8_lossy(&made.stderr).trim_end());
    }
    Ok(())
}

/// `cargo xtask image`.
pub fn command(args: &ImageArgs) -> Result<()> {
    let workspace = Workspace::load()?;
    need()?;
    let built = run::build(&workspace, &args.domain)?;
    let output = match &args.output {
        Some(path) => path.clone(),
        None => workspace.target_subdir("")?.join("proxenos.iso"),
    };
    let contents = Contents {
        hypervisor: &built.hypervisor.elf,
        kernel: &built.kernel,
        initrd: args.domain.initrd.as_deref(),
        further: &built.further,
        // No exit device on hardware.
        hypervisor_line: args.domain.hv_args.clone(),
        guest_line: args.domain.cmdline.clone(),
        menu_seconds: 3,
    };
    make(&contents, &output)?;
    console::step(&format!("boot it with  {} -serial stdio -cpu max -cdrom {}", qemu::PROGRAM, output.display()));
    println!("{}", PathBuf::from(&output).display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(guest_line: &str) -> Contents<'_> {
        Contents {
            hypervisor: Path::new("px"),
            kernel: Path::new("guest"),
            initrd: Some(Path::new("disk")),
            further: &[],
            hypervisor_line: "debug-exit=0xf4 loglvl=all".to_owned(),
            guest_line: guest_line.to_owned(),
            menu_seconds: 0,
        }
    }

    #[test]
    fn lines_are_quoted_word_by_word_and_modules_named() {
        let menu = menu(&contents("root=$x  {quiet}")).expect("writable");
        assert!(menu.contains("multiboot2 /boot/proxenos 'debug-exit=0xf4' 'loglvl=all'\n"));
        assert!(menu.contains("module2 /boot/domain0 domain0 'root=$x' '{quiet}'\n"));
        assert!(menu.contains("module2 /boot/initrd initrd\n"));
    }

    #[test]
    fn a_quote_is_refused() {
        assert!(menu(&contents("it's")).is_err());
    }
}
