//! What the name of a cgroup's folder says: whose container, pod or unit it is.

/// Digits of a pod's UID.
const UID_DIGITS: usize = 32;

/// `docker-<id>.scope`, `cri-containerd-<id>.scope`, `crio-<id>.scope`, `libpod-<id>.scope`, or, as the cgroupfs
/// driver writes it, the same without `.scope` or the bare id: 64 hexadecimal digits. The scope of conmon, which
/// watches over a container of CRI-O or Podman, is not the container's.
pub fn container_id(folder: &str) -> Option<&str> {
    let name = folder.strip_suffix(".scope").unwrap_or(folder);
    let (runtime, id) = name.rsplit_once('-').unwrap_or(("", name));
    let is_id = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
    (is_id && !runtime.ends_with("conmon")).then_some(id)
}

/// The UID of the Kubernetes pod whose folder this is: `pod<uid>` as kubelet's cgroupfs driver names it; with its
/// systemd driver `kubepods-...-pod<uid>.slice`, underscores for dashes, and further names before `kubepods`
/// below a `--cgroup-root` (kind: `kubelet-kubepods-...`).
/// kubernetes: pkg/kubelet/cm/cgroup_manager_linux.go, `CgroupName.ToSystemd`.
pub fn pod_uid(folder: &str) -> Option<String> {
    let uid = match folder.strip_suffix(".slice") {
        Some(name) => {
            let (parents, uid) = name.rsplit_once("-pod")?;
            parents.split('-').any(|parent| parent == "kubepods").then_some(uid)?
        }
        None => folder.strip_prefix("pod")?,
    };
    let uid = uid.replace('_', "-");
    is_pod_uid(&uid).then_some(uid)
}

/// Whether this may be a pod's UID: a UUID, or of a static pod 32 hexadecimal digits.
pub fn is_pod_uid(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_hexdigit).count();
    let dashes: Vec<_> = text.match_indices('-').map(|(at, _)| at).collect();
    digits == UID_DIGITS
        && digits + dashes.len() == text.len()
        && (dashes.is_empty() || dashes == [8, 13, 18, 23])
}

/// A service, or a scope that is neither a container's, its monitor's, a login session's nor init's.
pub fn unit(folder: &str) -> Option<&str> {
    if folder.ends_with(".service") && !folder.starts_with("user@") {
        return Some(folder);
    }
    let scope = folder.strip_suffix(".scope")?;
    let is_named = container_id(folder).is_none()
        && !scope.contains("-conmon-")
        && !scope.starts_with("session-")
        && scope != "init";
    is_named.then_some(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn a_container_s_folder_has_its_id() {
        for name in ["", "cri-containerd-", "crio-", "docker-", "libpod-"] {
            for suffix in ["", ".scope"] {
                let folder = format!("{name}{ID}{suffix}");
                assert_eq!(container_id(&folder), Some(ID), "{folder}");
            }
        }
        for folder in [
            format!("crio-conmon-{ID}.scope"),
            format!("libpod-conmon-{ID}.scope"),
            format!("cri-containerd-{}.scope", &ID[1..]),
            format!("cri-containerd-g{}.scope", &ID[1..]),
            format!("cri-containerd-{ID}.slice"),
            "init.scope".into(),
            String::new(),
        ] {
            assert_eq!(container_id(&folder), None, "{folder}");
        }
    }

    #[test]
    fn a_pod_s_folder_has_its_uid_whatever_the_driver() {
        let (uid, hash) =
            ("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0", "0123456789abcdef0123456789abcdef");
        let systemd = uid.replace('-', "_");
        for (folder, want) in [
            (format!("pod{uid}"), Some(uid)),
            (format!("pod{hash}"), Some(hash)),
            (format!("kubepods-pod{systemd}.slice"), Some(uid)),
            (format!("kubepods-burstable-pod{systemd}.slice"), Some(uid)),
            (format!("kubepods-besteffort-pod{hash}.slice"), Some(hash)),
            (format!("kubelet-kubepods-burstable-pod{systemd}.slice"), Some(uid)),
            (format!("my-root-kubepods-pod{hash}.slice"), Some(hash)),
            (format!("other-pod{systemd}.slice"), None),
            (format!("nokubepods-pod{systemd}.slice"), None),
            (format!("pod{systemd}.slice"), None),
            (format!("kubepods-pod{systemd}"), None),
            (format!("kubepods-pod{systemd}0.slice"), None),
            (format!("pod{}", &hash[1..]), None),
            (format!("pod{}", uid.replacen('-', "", 1)), None),
            (format!("pod{}", uid.replacen('0', "g", 1)), None),
            ("podium".into(), None),
            ("kubepods.slice".into(), None),
            ("kubepods-burstable.slice".into(), None),
        ] {
            assert_eq!(pod_uid(&folder).as_deref(), want, "{folder}");
        }
    }
}
