"""The performers: models, networks and video files. Free of Ray but for `actors.pin`."""
