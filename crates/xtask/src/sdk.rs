//! The public SDKs that the tests drive Postrider with, at the versions pinned in `tests/sdk`.

use std::path::Path;

use anyhow::{Context, Result};
use postrider_testkit::services::target_dir;

use crate::install::{need, packages, possible};
use crate::shell::{command, must, root, works};

/// The Python that can import the SDKs.
const PYTHON: &str = "POSTRIDER_TEST_PYTHON";
/// The directory in which Node finds the SDKs.
const NODE_DIR: &str = "POSTRIDER_TEST_NODE_DIR";

/// Installs both SDKs under the target directory, unless they are there at these versions; returns the variables
/// that tell tests where they are.
pub(crate) async fn prepare() -> Result<Vec<(&'static str, String)>> {
    need("python3", &["python3", "python3-venv"]).await?;
    need("npm", &["nodejs", "npm"]).await?;
    let python = target_dir().join("sdk-python");
    once(&python, "requirements.txt", async |pins| {
        python_packages(&python, pins).await
    })
    .await?;
    let node = target_dir().join("sdk-js");
    once(&node, "package.json", async |pins| {
        node_packages(&node, pins).await
    })
    .await?;
    Ok(vec![
        (PYTHON, python.join("bin/python").display().to_string()),
        (NODE_DIR, node.display().to_string()),
    ])
}

/// Runs `make` unless it has run with this very file of pins.
async fn once(place: &Path, file: &str, make: impl AsyncFnOnce(&Path) -> Result<()>) -> Result<()> {
    let pins = root().join("tests/sdk").join(file);
    let wanted = std::fs::read(&pins).with_context(|| format!("cannot read {}", pins.display()))?;
    let done = place.join("installed");
    if std::fs::read(&done).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    make(&pins).await?;
    Ok(std::fs::write(done, wanted)?)
}

async fn python_packages(place: &Path, pins: &Path) -> Result<()> {
    let create = || {
        let mut create = command("python3");
        create.args(["-m", "venv", "--clear"]).arg(place);
        create
    };
    if !works(create()).await {
        if possible() {
            packages(&["python3-venv"]).await?;
        }
        must(create())
            .await
            .context("python3 cannot make virtual environments; Debian: python3-venv")?;
    }
    let mut pip = command(place.join("bin/python"));
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
    ])
    .arg(pins);
    must(pip).await
}

async fn node_packages(place: &Path, pins: &Path) -> Result<()> {
    std::fs::create_dir_all(place)?;
    std::fs::copy(pins, place.join("package.json"))?;
    let mut npm = command("npm");
    npm.args([
        "install",
        "--no-package-lock",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--loglevel=error",
    ]);
    npm.current_dir(place);
    must(npm).await
}
