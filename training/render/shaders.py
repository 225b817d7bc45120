"""The programs of the renderer: subject, backdrop, and depth seen by the sun and from below."""

from __future__ import annotations

COMMON = """
#version 330
const float PI = 3.14159265;
uniform sampler2DShadow shadow_map;
uniform mat4 world_to_sun;
uniform float softness;
uniform vec3 to_sun;

vec3 linear(vec3 c) {
    return mix(c / 12.92, pow((c + 0.055) / 1.055, vec3(2.4)), step(0.04045, c));
}
vec3 encoded(vec3 c) {
    c = clamp(c, 0.0, 1.0);
    return mix(c * 12.92, 1.055 * pow(c, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, c));
}
// Leaves colours below .7 as they are and lets brighter ones come to 1 slowly.
vec3 shoulder(vec3 c) {
    vec3 over = max(c - 0.7, 0.0);
    return min(c, 0.7) + 0.3 * over / (over + 0.3);
}
// Share of the sun that reaches a point, by sixteen looks around it.
float sunlight(vec3 point, float radius, float bias) {
    vec3 at = (world_to_sun * vec4(point, 1.0)).xyz * 0.5 + 0.5;
    if (any(lessThan(at, vec3(0.0))) || any(greaterThan(at, vec3(1.0)))) return 1.0;
    float sum = 0.0;
    for (int i = 0; i < 16; i++) {
        float turn = 2.399963 * float(i);
        vec2 away = sqrt((float(i) + 0.5) / 16.0) * radius * vec2(cos(turn), sin(turn));
        sum += texture(shadow_map, vec3(clamp(at.xy + away, 0.0, 1.0), at.z - bias));
    }
    return sum / 16.0;
}
"""

SUBJECT_VERTEX = """
#version 330
uniform mat4 world_to_clip;
in vec3 in_position;
in vec3 in_normal;
in vec2 in_uv;
in vec4 in_colour;
out vec3 position;
out vec3 normal;
out vec2 uv;
out vec4 colour;
void main() {
    position = in_position;
    normal = in_normal;
    uv = in_uv;
    colour = in_colour;
    gl_Position = world_to_clip * vec4(in_position, 1.0);
}
"""

SUBJECT_FRAGMENT = (
    COMMON
    + """
uniform vec3 eye;
uniform vec3 sun;
uniform vec3 ambient[9];
uniform sampler2D base;
uniform sampler2D pattern;
uniform bool has_base;
uniform bool has_pattern;
uniform bool is_flat;
uniform float repeats;
uniform mat3 recolour;
in vec3 position;
in vec3 normal;
in vec2 uv;
in vec4 colour;
layout(location = 0) out vec4 picture;
layout(location = 1) out float depth;

vec3 irradiance(vec3 n) {
    return max(vec3(0.0), ambient[0] * 0.282095
        + 0.488603 * (ambient[1] * n.y + ambient[2] * n.z + ambient[3] * n.x)
        + 1.092548 * (ambient[4] * n.x * n.y + ambient[5] * n.y * n.z + ambient[7] * n.x * n.z)
        + ambient[6] * 0.315392 * (3.0 * n.z * n.z - 1.0)
        + ambient[8] * 0.546274 * (n.x * n.x - n.y * n.y));
}
// A pattern laid on from three sides, so that a model needs no texture coordinates.
vec3 laid_on(vec3 n) {
    vec3 share = pow(abs(n), vec3(6.0));
    share /= share.x + share.y + share.z;
    vec3 p = position * repeats;
    vec3 x = linear(texture(pattern, p.zy).rgb);
    vec3 y = linear(texture(pattern, p.xz).rgb);
    return share.x * x + share.y * y + share.z * linear(texture(pattern, p.xy).rgb);
}
void main() {
    vec4 albedo = colour;
    if (has_base) {
        vec4 texel = texture(base, uv);
        albedo *= vec4(linear(texel.rgb), texel.a);
    }
    if (albedo.a < 0.5) discard;
    vec3 n = normalize(normal);
    vec3 to_eye = normalize(eye - position);
    if (!gl_FrontFacing && dot(n, to_eye) < 0.0) n = -n;
    if (has_pattern) albedo.rgb *= laid_on(n);
    albedo.rgb = linear(clamp(recolour * encoded(albedo.rgb), 0.0, 1.0));
    if (is_flat) n = normalize(vec3(to_eye.x, 0.35, to_eye.z));
    float facing = max(dot(n, to_sun), 0.0);
    float lit = is_flat ? 1.0 : sunlight(position + n * 0.008, softness * 0.35, 0.004);
    float open = mix(0.62, 1.0, smoothstep(0.0, 0.22, position.y + 0.1 * (n.y + 1.0)));
    vec3 halfway = normalize(to_sun + to_eye);
    float gloss = is_flat ? 0.0 : 0.10 * pow(max(dot(n, halfway), 0.0), 24.0) * step(0.0, facing);
    vec3 light = irradiance(n) * open + sun * facing * lit;
    picture = vec4(encoded(shoulder(albedo.rgb * light + sun * gloss * lit)), 1.0);
    depth = distance(eye, position);
}
"""
)

BACKDROP_VERTEX = """
#version 330
in vec2 in_corner;
out vec2 corner;
void main() {
    corner = in_corner;
    gl_Position = vec4(in_corner, 0.9999, 1.0);
}
"""

BACKDROP_FRAGMENT = (
    COMMON
    + """
uniform int kind;  // 0 white, 1 a picture, 2 ground and sky, 3 a panorama
uniform mat4 clip_to_world;
uniform vec3 eye;
uniform sampler2D image;
uniform sampler2D contact;
uniform float contact_reach;
uniform float shade;
uniform float height;
uniform float turn;
uniform float brightness;
uniform float repeats;
uniform vec3 zenith;
uniform vec3 horizon;
uniform vec3 tint;
in vec2 corner;
layout(location = 0) out vec4 picture;
layout(location = 1) out float depth;

vec3 around(vec3 d) {
    float u = fract(atan(d.x, -d.z) / (2.0 * PI) + 0.5 + turn);
    // The level is named: derivatives jump where the panorama meets itself.
    return textureLod(image, vec2(u, acos(clamp(d.y, -1.0, 1.0)) / PI), 0.0).rgb;
}
vec3 filmed(vec3 c) { return c * (1.0 + c / 9.0) / (1.0 + c); }  // Reinhard's, white at 3

void main() {
    vec4 away = clip_to_world * vec4(corner, 1.0, 1.0);
    vec3 ray = normalize(away.xyz / away.w - eye);
    bool is_ground = ray.y < -1e-4;
    vec3 hit = is_ground ? eye - ray * (eye.y / ray.y) : vec3(0.0);
    depth = is_ground ? min(distance(eye, hit), 200.0) : 200.0;
    vec3 found = vec3(1.0);
    if (kind == 1) found = linear(texture(image, vec2(corner.x, -corner.y) * 0.5 + 0.5).rgb);
    if (kind == 2) {
        vec3 sky = mix(horizon, zenith, smoothstep(0.0, 0.6, ray.y));
        found = sky;
        if (is_ground) {
            vec2 at = hit.xz * repeats;
            vec3 floor = linear(texture(image, at).rgb) * tint;
            float far = smoothstep(4.0, 26.0, length(hit.xz));
            found = mix(floor, horizon, far);
        }
    }
    if (kind == 3) {
        vec3 d = is_ground ? normalize(hit - vec3(0.0, height, 0.0)) : ray;
        found = filmed(brightness * around(d));
    }
    if (is_ground && shade > 0.0) {
        float lit = sunlight(hit, softness, 0.002);
        vec2 under = hit.xz / contact_reach * 0.5 + 0.5;
        bool is_near = all(greaterThan(under, vec2(0.0))) && all(lessThan(under, vec2(1.0)));
        float touch = is_near ? texture(contact, under).r : 0.0;
        found *= 1.0 - shade * (1.0 - (1.0 - 0.75 * touch) * mix(0.5, 1.0, lit));
    }
    picture = vec4(encoded(found), 0.0);
}
"""
)

DEPTH_VERTEX = """
#version 330
uniform mat4 world_to_clip;
in vec3 in_position;
in vec2 in_uv;
in vec4 in_colour;
out vec2 uv;
out float opacity;
out float height;
void main() {
    uv = in_uv;
    opacity = in_colour.a;
    height = in_position.y;
    gl_Position = world_to_clip * vec4(in_position, 1.0);
}
"""

DEPTH_FRAGMENT = """
#version 330
uniform sampler2D base;
uniform bool has_base;
in vec2 uv;
in float opacity;
in float height;
out float above;
void main() {
    if (opacity * (has_base ? texture(base, uv).a : 1.0) < 0.5) discard;
    above = height;
}
"""
