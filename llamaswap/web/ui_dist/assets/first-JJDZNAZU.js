import{a}from"./chunk-GPV6DY3G.js";import"./chunk-ALHM7MTY.js";import"./chunk-YD2ZDRBC.js";import"./chunk-X3VPJ676.js";import"./chunk-SQE76S5B.js";export{a as FirstSteps};
