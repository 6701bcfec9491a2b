//! Before the mesh: whoever holds the wire reads along.

use anyhow::Result;

use super::stage::Stage;
use super::story::Story;
use super::wire;

pub(super) async fn tell(story: &mut Story, stage: &mut Stage) -> Result<()> {
    let seen = wire::readable(stage).await?;
    story.line(format!(
        "the client sends header `x-secret: {}`: {} of {} packets between the nodes show it to anyone",
        seen.marker, seen.readable, seen.packets
    ));
    stage.hold("before the label", "tcp://echo-v1:9090").await?;
    story.line("a TCP connection is opened, and kept in use from here on".to_owned());
    Ok(())
}
