//! Three frames of a video: what the README shows.

use reeld_client::Video;

fn main() -> Result<(), reeld_client::Error> {
    let video = Video::open("video.mp4")?;
    let frames = video.frames_at(&[0, 10, -1])?;
    for frame in frames.parts().flat_map(|part| part.frames()) {
        println!("{} bytes of RGB at {} s", frame.pixels().len(), frame.pts_seconds());
    }
    Ok(())
}
