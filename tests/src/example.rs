//! What the examples in the client's documentation stand on: a folder with a clip, and a daemon to be found.
//!
//! The examples themselves are where the documentation is.

use std::env;
use std::path::PathBuf;
use std::sync::Once;

use crate::media::clip;

/// Makes a folder the current one that has `clip.mp4`: 50 frames of 320 x 180, 25 a second. The binary of
/// this build is started as a private daemon, unless the environment names another daemon or binary.
pub fn enter_example_folder() {
    static ENTERED: Once = Once::new();
    ENTERED.call_once(|| {
        let made = clip("h264_bframes.mp4");
        let folder = made.parent().expect("the folder of clips").join("example");
        std::fs::create_dir_all(&folder).expect("a folder for examples");
        // Another example may be doing the same.
        let _ = std::os::unix::fs::symlink(&made, folder.join("clip.mp4"));
        env::set_current_dir(&folder).expect("the folder can be entered");
        if let Some(binary) = binary_of_this_build().filter(|_| env::var_os("REELD_BINARY").is_none()) {
            // SAFETY: an example begins with this call, so that no other thread reads the environment.
            unsafe { env::set_var("REELD_BINARY", binary) };
        }
    });
}

/// Examples are built elsewhere, but find the folders that cargo links from.
fn binary_of_this_build() -> Option<PathBuf> {
    let folders = env::var_os("LD_LIBRARY_PATH")?;
    let beside = |folder: PathBuf| {
        folder.ancestors().take(2).map(|folder| folder.join("reeld")).find(|binary| binary.is_file())
    };
    env::split_paths(&folders).find_map(beside)
}
