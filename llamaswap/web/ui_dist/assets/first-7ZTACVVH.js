import{a}from"./chunk-7ZGFN3UV.js";import"./chunk-MAZYZGKD.js";import"./chunk-XVI4NGFL.js";import"./chunk-X3VPJ676.js";import"./chunk-SQE76S5B.js";export{a as FirstSteps};
