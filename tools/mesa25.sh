#!/usr/bin/env bash
# Unpacks Debian backports' Mesa 25 beside the system; nothing is installed.
#
#     tools/mesa25.sh DIR
#     LD_LIBRARY_PATH=DIR/root/usr/lib/x86_64-linux-gnu VK_DRIVER_FILES=DIR/radeon_icd.json python tools/rdna_gate.py
#
# DIR/lvp_icd.json is its software driver. It asks the Debian mirror that this machine's apt already uses.
set -euo pipefail
folder=$(realpath -m "$1")
mkdir -p "$folder"/{lists/partial,sources,debs,root}

mirror=$(awk '/^URIs:/ {print $2; exit}' /etc/apt/sources.list.d/*.sources 2>/dev/null || true)
[ -n "$mirror" ] || mirror=$(awk '/^deb / {for (i = 2; i <= NF; i++) if ($i ~ /:\/\//) {print $i; exit}}' /etc/apt/sources.list)
[ -n "$mirror" ] || { echo "mesa25.sh: no Debian mirror is configured on this machine; the compiler for AMD cannot be had" >&2; exit 1; }
cat >"$folder/sources/mesa.sources" <<SOURCES
Types: deb
URIs: $mirror
Suites: bookworm bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES

apt=(apt-get -oDir::Etc::sourcelist=/dev/null -oDir::Etc::sourceparts="$folder/sources" -oDir::State::Lists="$folder/lists"
    -oAPT::Sandbox::User=root)
packages=(mesa-vulkan-drivers libdrm2 libdrm-amdgpu1)
cd "$folder/debs"
if ! { "${apt[@]}" update -qq && "${apt[@]}" download -qq "${packages[@]/%//bookworm-backports}"; }; then
    echo "mesa25.sh: $mirror does not give Debian backports' Mesa; the compiler for AMD cannot be had" >&2
    exit 1
fi
for package in *.deb; do dpkg -x "$package" "$folder/root"; done
for driver in radeon lvp; do
    cp "$folder"/root/usr/share/vulkan/icd.d/"${driver}"_icd*.json "$folder/${driver}_icd.json"
done
